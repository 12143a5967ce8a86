//! VM-wide structures: KVM's on one side, the typed values of the state on the other.

use ferry_state::x86::{Clock, IOAPIC_PINS, IoApic, Pic, Pit, PitChannel};
use kvm_bindings::{
    kvm_clock_data, kvm_ioapic_state, kvm_ioapic_state__bindgen_ty_1, kvm_irqchip, kvm_pic_state,
    kvm_pit_channel_state, kvm_pit_state2,
};

/// The PIC in an answer of `KVM_GET_IRQCHIP` for one of the PICs.
pub(in crate::x86) fn pic_from_kvm(chip: &kvm_irqchip) -> Pic {
    // SAFETY: the union's members are plain numbers, every byte of it was zeroed before KVM wrote
    // into it, and any bytes are a kvm_pic_state.
    let pic = unsafe { chip.chip.pic };
    let kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    } = pic;
    Pic {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    }
}

/// What `KVM_SET_IRQCHIP` takes for one of the PICs.
pub(in crate::x86) fn pic_to_kvm(chip_id: u32, pic: &Pic) -> kvm_irqchip {
    let Pic {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    } = *pic;
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    chip.chip.pic = kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    };
    chip
}

/// The IOAPIC in an answer of `KVM_GET_IRQCHIP` for it.
pub(in crate::x86) fn ioapic_from_kvm(chip: &kvm_irqchip) -> IoApic {
    // SAFETY: the union's members are plain numbers, every byte of it was zeroed before KVM wrote
    // into it, and any bytes are a kvm_ioapic_state.
    let ioapic = unsafe { chip.chip.ioapic };
    let kvm_ioapic_state { base_address, ioregsel, id, irr, pad: _, redirtbl } = ioapic;
    let redirection: [u64; IOAPIC_PINS] = redirtbl.map(|entry| {
        // SAFETY: both members of the union are eight plain bytes.
        unsafe { entry.bits }
    });
    IoApic { base_address, ioregsel, id, irr, redirection }
}

/// What `KVM_SET_IRQCHIP` takes for the IOAPIC.
pub(in crate::x86) fn ioapic_to_kvm(chip_id: u32, ioapic: &IoApic) -> kvm_irqchip {
    let IoApic { base_address, ioregsel, id, irr, redirection } = *ioapic;
    let redirtbl = redirection.map(|bits| kvm_ioapic_state__bindgen_ty_1 { bits });
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    chip.chip.ioapic = kvm_ioapic_state { base_address, ioregsel, id, irr, pad: 0, redirtbl };
    chip
}

pub(in crate::x86) fn pit_from_kvm(pit: &kvm_pit_state2) -> Pit {
    let kvm_pit_state2 { channels, flags, reserved: _ } = *pit;
    let channels = channels.map(|channel| {
        let kvm_pit_channel_state {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
            count_load_time: _,
        } = channel;
        PitChannel {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
        }
    });
    Pit { channels, flags }
}

/// What `KVM_SET_PIT2` takes; it writes the time of loading itself (`pit_load_count` in i8254.c), and of
/// channel 0 it asks its own timer instead.
pub(in crate::x86) fn pit_to_kvm(pit: &Pit) -> kvm_pit_state2 {
    let Pit { channels, flags } = *pit;
    let channels = channels.map(|channel| {
        let PitChannel {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
        } = channel;
        kvm_pit_channel_state {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
            count_load_time: 0,
        }
    });
    kvm_pit_state2 { channels, flags, ..Default::default() }
}

pub(in crate::x86) fn clock_from_kvm(clock: &kvm_clock_data) -> Clock {
    let kvm_clock_data { clock, flags, pad0: _, realtime, host_tsc, pad: _ } = *clock;
    Clock { clock, flags, realtime, host_tsc }
}

/// What `KVM_SET_CLOCK` takes: the clock alone, without flags.
///
/// `KVM_CLOCK_TSC_STABLE` and `KVM_CLOCK_HOST_TSC` are words of `KVM_GET_CLOCK` and mean nothing here;
/// a KVM before 5.16 refuses any flag. `KVM_CLOCK_REALTIME` would add the time since the capture by
/// the difference of the two hosts' wall clocks, to this clock alone. Where a guest's time is to catch up,
/// all its clocks are moved on alike before they come here: this one and the TSC never part.
pub(in crate::x86) fn clock_to_kvm(clock: &Clock) -> kvm_clock_data {
    kvm_clock_data { clock: clock.clock, ..Default::default() }
}
