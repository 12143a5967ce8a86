//! A model checker over the very machines of this crate: every schedule of faults within stated
//! bounds, not a sample of them.

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod carry;
#[cfg(test)]
mod checker;
#[cfg(test)]
mod heal;
#[cfg(test)]
mod links;
#[cfg(test)]
mod moves;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod story;
#[cfg(test)]
mod world;
#[cfg(test)]
mod wrong;
