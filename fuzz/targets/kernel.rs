//! Fuzzes the loader of kernels.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::guests::kernel);
