//! The hand-over of a guest in a small world: the table of `docs/guarantees.md`, and single
//! decisions. Random faults are the simulation's (`ferry-simulate`).

#[cfg(test)]
mod choosing;
#[cfg(test)]
mod guarantees;
#[cfg(test)]
mod one_way;
#[cfg(test)]
mod outcomes;
#[cfg(test)]
mod settling;
#[cfg(test)]
mod source_decisions;
#[cfg(test)]
mod target_decisions;
#[cfg(test)]
mod world;
