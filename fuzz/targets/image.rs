//! Fuzzes the loader of images.
#![no_main]

ferry_fuzz::target!(ferry_fuzz::guests::image);
