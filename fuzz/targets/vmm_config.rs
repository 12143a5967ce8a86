//! Fuzzes configurations of guests of the reference VMM.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::guests::vmm_config);
