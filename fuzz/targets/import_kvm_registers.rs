//! Fuzzes the import of an arm64 host's registers.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::contract::import_kvm_registers);
