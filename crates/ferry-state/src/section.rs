//! One part of the state with its name and its wire form.
/// One part of the state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Section {
    /// What part: for example `x86.regs`, or `device/debug-port`.
    pub name: String,
    /// Which one of several, for example the vCPU's index.
    pub index: u32,
    /// Numbers of the fields whose value is not what a machine of that kind holds right after creation.
    pub needed: Vec<u32>,
    /// A CBOR map from field number to value.
    pub body: Vec<u8>,
}
/// All sections of a machine, in the order in which they were captured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineState {
    /// The sections.
    pub sections: Vec<Section>,
}
