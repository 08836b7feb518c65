//! Names that a host stands by for: at most one of its handles serves each.

use std::collections::{HashMap, HashSet};

use airssys_wasm_actor::registry::ComponentId;
use parking_lot::Mutex;

/// The names that a host stands by for.
#[derive(Default)]
pub(crate) struct StoodBy(Mutex<Names>);

#[derive(Default)]
struct Names {
    /// How many handles each has.
    handles: HashMap<ComponentId, usize>,
    /// Those that are claimed or served, by one of them each.
    served: HashSet<ComponentId>,
}

impl StoodBy {
    pub(crate) fn begin(&self, name: &ComponentId) {
        *self.0.lock().handles.entry(name.clone()).or_default() += 1;
    }

    /// Whether it was the last of the name.
    pub(crate) fn end(&self, name: &ComponentId) -> bool {
        let handles = &mut self.0.lock().handles;
        let left = handles.get_mut(name).map_or(0, |left| {
            *left -= 1;
            *left
        });
        if left == 0 {
            handles.remove(name);
        }
        left == 0
    }

    pub(crate) fn serves(&self, name: &ComponentId) -> bool {
        self.0.lock().served.contains(name)
    }

    /// Lets one serve the name. `None` while another does.
    pub(crate) fn serve(&self, name: &ComponentId) -> Option<Serves<'_>> {
        self.0.lock().served.insert(name.clone()).then(|| Serves(self, name.clone()))
    }
}

/// The name is free for another of them when this is dropped.
pub(crate) struct Serves<'a>(&'a StoodBy, ComponentId);

impl Drop for Serves<'_> {
    fn drop(&mut self) {
        self.0.0.lock().served.remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_served_by_one_and_given_up_by_the_last() {
        let (stood_by, name) = (StoodBy::default(), ComponentId::new("alone").unwrap());
        stood_by.begin(&name);
        stood_by.begin(&name);
        let serves = stood_by.serve(&name);
        assert!(serves.is_some() && stood_by.serves(&name) && stood_by.serve(&name).is_none());
        assert!(!stood_by.end(&name));
        drop(serves);
        assert!(!stood_by.serves(&name) && stood_by.serve(&name).is_some());
        assert!(stood_by.end(&name));
    }
}
