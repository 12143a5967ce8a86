//! Fuzzes configurations of simulated guests.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::guests::sim_config);
