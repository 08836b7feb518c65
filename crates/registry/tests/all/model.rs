//! Random operations against plain models.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use airssys_wasm_registry::{ActorAddress, ComponentRegistry, MessageBroker, Topic, TopicPattern, WhenFull};
use proptest::prelude::*;

use crate::{Shelf, id};

/// Few tokens, so that patterns and topics meet.
fn token() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c"])
}

fn any_topic() -> impl Strategy<Value = Topic> {
    prop::collection::vec(token(), 1..5).prop_map(|tokens| Topic::new(&tokens.join(".")).unwrap())
}

fn any_pattern() -> impl Strategy<Value = TopicPattern> {
    let tokens = prop::collection::vec(prop_oneof![3 => token(), 1 => Just("*")], 1..5);
    (tokens, any::<bool>()).prop_map(|(mut tokens, open)| {
        if open {
            tokens.push(">");
        }
        TopicPattern::new(&tokens.join(".")).unwrap()
    })
}

/// What a pattern means, as plainly as it can be said.
fn plainly(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        ([first, pattern @ ..], [token, topic @ ..]) => (*first == "*" || first == token) && plainly(pattern, topic),
        _ => false,
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Register(u8),
    /// An address that was given out some time ago.
    Deregister(usize),
    Replace(usize),
    Resolve(usize),
    Lookup(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => (0_u8..5).prop_map(Operation::Register),
        2 => (0_usize..20).prop_map(Operation::Deregister),
        1 => (0_usize..20).prop_map(Operation::Replace),
        2 => (0_usize..20).prop_map(Operation::Resolve),
        2 => (0_u8..5).prop_map(Operation::Lookup),
    ]
}

proptest! {
    #[test]
    fn matching_is_as_it_is_defined(pattern in any_pattern(), topic in any_topic()) {
        let (p, t): (Vec<_>, Vec<_>) = (pattern.tokens().collect(), topic.tokens().collect());
        prop_assert_eq!(pattern.matches(&topic), plainly(&p, &t));
    }

    #[test]
    fn the_broker_finds_whom_the_patterns_match(
        patterns in prop::collection::vec((any_pattern(), any::<bool>()), 0..40),
        topics in prop::collection::vec(any_topic(), 1..10),
    ) {
        let broker = MessageBroker::new();
        let mut kept = Vec::new();
        for (pattern, keep) in &patterns {
            let subscription = broker.subscribe(pattern, Shelf::new(1), WhenFull::Error);
            if *keep {
                kept.push(subscription);
            }
        }
        for topic in &topics {
            let expected = patterns.iter().filter(|(pattern, keep)| *keep && pattern.matches(topic)).count();
            prop_assert_eq!(broker.subscribers(topic), expected);
        }
        drop(kept);
        prop_assert!(topics.iter().all(|topic| broker.subscribers(topic) == 0));
    }

    #[test]
    fn the_registry_does_as_a_map_of_generations(operations in prop::collection::vec(operation(), 0..100)) {
        let registry = ComponentRegistry::new();
        let mut model: BTreeMap<String, (ActorAddress, Arc<Shelf>)> = BTreeMap::new();
        let mut given: Vec<ActorAddress> = Vec::new();
        for operation in operations {
            match operation {
                Operation::Register(n) => {
                    let (name, shelf) = (format!("c{n}"), Shelf::new(1));
                    match (registry.register(&id(&name), Arc::clone(&shelf)), model.get(&name)) {
                        (Ok(address), None) => {
                            prop_assert!(given.iter().all(|old| old.generation() < address.generation()));
                            given.push(address.clone());
                            model.insert(name, (address, shelf));
                        }
                        (Err(taken), Some((holder, _))) => prop_assert_eq!(&taken.holder, holder),
                        (result, expected) => prop_assert!(false, "{result:?} {}", expected.is_some()),
                    }
                }
                Operation::Deregister(n) => {
                    let Some(address) = given.get(n) else { continue };
                    let name = address.id().as_str();
                    let live = model.get(name).is_some_and(|(current, _)| current == address);
                    prop_assert_eq!(registry.deregister(address).is_ok(), live);
                    if live {
                        model.remove(name);
                    }
                }
                Operation::Replace(n) => {
                    let Some(address) = given.get(n) else { continue };
                    let shelf = Shelf::new(1);
                    let current = model.get_mut(address.id().as_str()).filter(|(current, _)| current == address);
                    match (registry.replace(address, Arc::clone(&shelf)), current) {
                        (Ok(before), Some((_, known))) => {
                            prop_assert!(Arc::ptr_eq(&before, known));
                            *known = shelf;
                        }
                        (Err(_), None) => {}
                        (result, _) => prop_assert!(false, "{}", result.is_ok()),
                    }
                }
                Operation::Resolve(n) => {
                    let Some(address) = given.get(n) else { continue };
                    let current = model.get(address.id().as_str()).filter(|(current, _)| current == address);
                    match (registry.resolve(address), current) {
                        (Ok(sink), Some((_, known))) => prop_assert!(Arc::ptr_eq(&sink, known)),
                        (Err(_), None) => {}
                        (result, _) => prop_assert!(false, "{}", result.is_ok()),
                    }
                }
                Operation::Lookup(n) => {
                    let name = format!("c{n}");
                    prop_assert_eq!(registry.lookup(&id(&name)), model.get(&name).map(|(address, _)| address.clone()));
                    prop_assert_eq!(registry.exists(&id(&name)), model.contains_key(&name));
                }
            }
        }
        let listed: BTreeSet<_> = registry.list().iter().map(ToString::to_string).collect();
        let expected: BTreeSet<_> = model.values().map(|(address, _)| address.to_string()).collect();
        prop_assert_eq!(listed, expected);
    }
}
