//! The wire forms: golden files of today's, round trips, and bytes that are none.

#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod values;
