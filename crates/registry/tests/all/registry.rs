//! Names, addresses, generations, changes and groups.

use std::sync::Arc;

use airssys_wasm_registry::{Change, ComponentRegistry, GroupError, ResolveError};

use crate::{Shelf, id};

#[test]
fn a_name_is_given_once_and_the_holder_is_named() {
    let registry = ComponentRegistry::new();
    assert!(!registry.exists(&id("a")));
    let address = registry.register(&id("a"), Shelf::new(1)).unwrap();
    let taken = registry.register(&id("a"), Shelf::new(1)).unwrap_err();
    assert_eq!(taken.holder, address);
    assert!(taken.to_string().contains("`a`"), "{taken}");
    assert_eq!(registry.lookup(&id("a")), Some(address));
    assert!(registry.exists(&id("a")));
    assert_eq!(registry.lookup(&id("b")), None);
}

#[test]
fn a_stale_address_is_told_from_a_live_one() {
    let registry = ComponentRegistry::new();
    let first = registry.register(&id("a"), Shelf::new(1)).unwrap();
    registry.deregister(&first).unwrap();
    assert_eq!(registry.resolve(&first).err(), Some(ResolveError::Unknown { id: id("a") }));
    assert_eq!(registry.deregister(&first), Err(ResolveError::Unknown { id: id("a") }));
    let second = registry.register(&id("a"), Shelf::new(1)).unwrap();
    assert!(second.generation() > first.generation());
    assert_ne!(first, second);
    let stale = ResolveError::Stale { stale: first.clone(), current: second.clone() };
    assert_eq!(registry.resolve(&first).err(), Some(stale.clone()));
    assert_eq!(registry.deregister(&first), Err(stale.clone()));
    assert_eq!(registry.replace(&first, Shelf::new(1)).err(), Some(stale));
    registry.resolve(&second).unwrap();
}

#[test]
fn replacing_keeps_the_address() {
    let registry = ComponentRegistry::new();
    let (old, new) = (Shelf::new(1), Shelf::new(2));
    let address = registry.register(&id("a"), Arc::clone(&old)).unwrap();
    let before = registry.replace(&address, Arc::clone(&new)).unwrap();
    assert!(Arc::ptr_eq(&before, &old));
    assert!(Arc::ptr_eq(&registry.resolve(&address).unwrap(), &new));
    assert_eq!(registry.lookup(&id("a")), Some(address));
}

#[test]
fn everything_is_listed() {
    let registry = ComponentRegistry::new();
    assert!(registry.is_empty());
    let mut addresses: Vec<_> =
        (0..100).map(|n| registry.register(&id(&format!("c{n}")), Shelf::new(1)).unwrap()).collect();
    let mut listed = registry.list();
    listed.sort_by_key(airssys_wasm_registry::ActorAddress::generation);
    addresses.sort_by_key(airssys_wasm_registry::ActorAddress::generation);
    assert_eq!(listed, addresses);
    assert_eq!(registry.len(), 100);
}

#[test]
fn a_watcher_sees_each_change_in_order() {
    let registry = ComponentRegistry::new();
    registry.register(&id("unseen"), Shelf::new(1)).unwrap();
    let mut watcher = registry.watch();
    let address = registry.register(&id("a"), Shelf::new(1)).unwrap();
    registry.replace(&address, Shelf::new(1)).unwrap();
    let group = registry.create_group(&id("g")).unwrap();
    registry.join(&id("g"), &id("a")).unwrap();
    registry.leave(&id("g"), &id("a")).unwrap();
    registry.deregister(&address).unwrap();
    let expected = [
        Change::Registered(address.clone()),
        Change::Replaced(address.clone()),
        Change::Registered(group),
        Change::Joined { group: id("g"), member: id("a") },
        Change::Left { group: id("g"), member: id("a") },
        Change::Deregistered(address),
    ];
    for change in expected {
        assert_eq!(watcher.try_recv().unwrap(), change);
    }
    assert!(watcher.try_recv().is_err());
}

#[test]
fn a_watcher_that_lags_is_told_how_far() {
    use tokio::sync::broadcast::error::TryRecvError;
    let registry = ComponentRegistry::new();
    let mut watcher = registry.watch();
    for n in 0..1_030 {
        registry.register(&id(&format!("c{n}")), Shelf::new(1)).unwrap();
    }
    assert_eq!(watcher.try_recv(), Err(TryRecvError::Lagged(6)));
    assert!(watcher.try_recv().is_ok());
}

#[test]
fn groups_are_names_too() {
    let registry = ComponentRegistry::new();
    let component = registry.register(&id("a"), Shelf::new(1)).unwrap();
    let group = registry.create_group(&id("g")).unwrap();
    assert_eq!(registry.create_group(&id("a")).unwrap_err().holder, component);
    assert_eq!(registry.register(&id("g"), Shelf::new(1)).unwrap_err().holder, group);
    assert_eq!(registry.resolve(&group).err(), Some(ResolveError::IsGroup { id: id("g") }));
    assert_eq!(registry.replace(&group, Shelf::new(1)).err(), Some(ResolveError::IsGroup { id: id("g") }));

    assert_eq!(registry.join(&id("a"), &id("a")), Err(GroupError::IsComponent { holder: component.clone() }));
    let nobody = GroupError::NobodyThere { group: id("g"), member: id("none") };
    assert_eq!(registry.join(&id("g"), &id("none")), Err(nobody));
    registry.join(&id("g"), &id("a")).unwrap();
    let already = GroupError::AlreadyMember { group: id("g"), member: id("a") };
    assert_eq!(registry.join(&id("g"), &id("a")), Err(already));
    assert_eq!(registry.members(&id("g")), Ok(vec![component]));
    registry.leave(&id("g"), &id("a")).unwrap();
    let not_a_member = GroupError::NotAMember { group: id("g"), member: id("a") };
    assert_eq!(registry.leave(&id("g"), &id("a")), Err(not_a_member));
    registry.deregister(&group).unwrap();
    assert!(!registry.exists(&id("g")));
}

#[test]
fn joining_makes_the_group_and_who_is_gone_has_left() {
    let registry = ComponentRegistry::new();
    let mut changes = registry.watch();
    let a = registry.register(&id("a"), Shelf::new(1)).unwrap();
    registry.join(&id("g"), &id("a")).unwrap();
    registry.join(&id("h"), &id("a")).unwrap();
    let mut groups: Vec<_> = registry.groups().iter().map(|group| group.id().to_string()).collect();
    groups.sort();
    assert_eq!(groups, ["g", "h"]);
    registry.deregister(&a).unwrap();
    for group in ["g", "h"] {
        assert_eq!(registry.members(&id(group)), Ok(vec![]));
    }
    // Whoever has its name next is another.
    registry.register(&id("a"), Shelf::new(1)).unwrap();
    assert_eq!((registry.sinks("g").count(), registry.sinks("a").count(), registry.sinks("none").count()), (0, 1, 0));
    let left = std::iter::from_fn(|| changes.try_recv().ok()).filter(|change| matches!(change, Change::Left { .. }));
    assert_eq!(left.count(), 2);

    registry.remove_group(&id("g")).unwrap();
    for no_group in ["g", "a", "none"] {
        assert_eq!(registry.remove_group(&id(no_group)), Err(GroupError::NoGroup { id: id(no_group) }));
    }
    assert_eq!(registry.groups().len(), 1);
    assert!(registry.exists("a") && !registry.exists("g"));
}
