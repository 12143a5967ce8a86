//! The wire form of every part: golden files of today's form, and properties that hold for any value
//! and any bytes.

#[cfg(test)]
mod golden;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod properties;
