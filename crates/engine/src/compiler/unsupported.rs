//! Which feature a component needs that no engine here has, or none that was offered.

use wasmparser::{Validator, WasmFeatures};

use crate::{Feature, Features};

/// What an engine takes without any feature being offered: wasmtime's defaults, without what is off in its configuration
/// or left out at compile time.
const ALWAYS: WasmFeatures = WasmFeatures::WASM3
    .difference(WasmFeatures::GC)
    .difference(WasmFeatures::GC_TYPES)
    .difference(WasmFeatures::EXCEPTIONS)
    .difference(WasmFeatures::THREADS)
    .difference(WasmFeatures::MEMORY64)
    .difference(WasmFeatures::CM_ASYNC)
    .union(WasmFeatures::COMPONENT_MODEL);

/// In this order they are told of: what is offered nowhere first.
const KNOWN: [(Feature, WasmFeatures); 24] = [
    (Feature::LegacyExceptions, WasmFeatures::LEGACY_EXCEPTIONS),
    (Feature::SharedEverythingThreads, WasmFeatures::SHARED_EVERYTHING_THREADS),
    (Feature::Threads, WasmFeatures::THREADS),
    (Feature::Memory64, WasmFeatures::MEMORY64),
    (Feature::ComponentMemory64, WasmFeatures::CM64),
    (Feature::StackSwitching, WasmFeatures::STACK_SWITCHING),
    (Feature::CustomPageSizes, WasmFeatures::CUSTOM_PAGE_SIZES),
    (Feature::MemoryControl, WasmFeatures::MEMORY_CONTROL),
    (Feature::WideArithmetic, WasmFeatures::WIDE_ARITHMETIC),
    (Feature::CustomDescriptors, WasmFeatures::CUSTOM_DESCRIPTORS),
    (Feature::GarbageCollection, WasmFeatures::GC.union(WasmFeatures::GC_TYPES)),
    (Feature::Exceptions, WasmFeatures::EXCEPTIONS.union(WasmFeatures::GC_TYPES)),
    (Feature::ComponentGarbageCollection, WasmFeatures::CM_GC),
    (Feature::ComponentValues, WasmFeatures::CM_VALUES),
    (Feature::NestedNames, WasmFeatures::CM_NESTED_NAMES),
    (Feature::CanonicalNames, WasmFeatures::CM_CANON_NAMES),
    (Feature::FixedLengthLists, WasmFeatures::CM_FIXED_LENGTH_LISTS),
    (Feature::Maps, WasmFeatures::CM_MAP),
    (Feature::Implements, WasmFeatures::CM_IMPLEMENTS),
    (Feature::ErrorContext, WasmFeatures::CM_ERROR_CONTEXT),
    (Feature::ComponentThreads, WasmFeatures::CM_THREADING),
    (Feature::StackfulAsync, WasmFeatures::CM_ASYNC_STACKFUL),
    (Feature::MoreAsyncBuiltins, WasmFeatures::CM_MORE_ASYNC_BUILTINS),
    (Feature::ComponentAsync, WasmFeatures::CM_ASYNC),
];

/// With these, names are not valid that are valid without.
const CHANGES_NAMES: WasmFeatures = WasmFeatures::CM_NESTED_NAMES.union(WasmFeatures::CM_CANON_NAMES);

/// The feature without which what was refused is not valid. `None` if features have nothing to do with it.
///
/// Validates the component up to some twenty times, so only after it was refused.
pub(super) fn missing_feature(binary: &[u8], offered: Features) -> Option<Feature> {
    let is_valid = |features| Validator::new_with_features(features).validate_all(binary).is_ok();
    let mut always = ALWAYS;
    always.set(WasmFeatures::CM_ASYNC, offered.component_async);
    always.set(WasmFeatures::EXCEPTIONS, offered.exceptions);
    always.set(WasmFeatures::GC, offered.garbage_collection);
    always.set(WasmFeatures::GC_TYPES, offered.has_collected_heap());
    if is_valid(always) {
        return None;
    }
    let missing = || KNOWN.iter().filter(|(_, flag)| !always.contains(*flag));
    let all = missing()
        .map(|(_, flag)| *flag)
        .filter(|flag| !CHANGES_NAMES.contains(*flag))
        .fold(always, WasmFeatures::union);
    // Nearly all lack one.
    let mut found = missing().find(|(_, flag)| is_valid(always.union(*flag)));
    if found.is_none() && is_valid(all) {
        found = missing().find(|(_, flag)| !is_valid(all.difference(flag.difference(always))));
    }
    found.map(|(feature, _)| *feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASYNC: Features = Features { component_async: true, ..Features::NONE };

    fn missing(text: &str) -> Option<Feature> {
        missing_feature(&wat::parse_str(text).unwrap(), Features::NONE)
    }

    #[test]
    fn the_feature_is_found_among_others() {
        let module = |fields: &str| missing(&format!("(component (core module {fields}))"));
        assert_eq!(module("(func)"), None);
        assert_eq!(module("(func i32.add)"), None);
        assert_eq!(module("(memory i64 1)"), Some(Feature::Memory64));
        assert_eq!(module("(memory 1 2 shared)"), Some(Feature::Threads));
        assert_eq!(module("(tag)"), Some(Feature::Exceptions));
        assert_eq!(module("(type (struct))"), Some(Feature::GarbageCollection));
        assert_eq!(module("(type (sub (func)))"), Some(Feature::GarbageCollection));
        assert_eq!(module("(memory 1 (pagesize 1))"), Some(Feature::CustomPageSizes));
        assert_eq!(module("(func i64.const 1 i64.const 1 i64.mul_wide_s drop drop)"), Some(Feature::WideArithmetic));
        assert_eq!(module("(func try catch_all end)"), Some(Feature::LegacyExceptions));
        assert_eq!(missing("(component (type (list u8 3)))"), Some(Feature::FixedLengthLists));
        assert_eq!(missing("(component (type (map u8 u8)))"), Some(Feature::Maps));
        assert_eq!(missing("(component (core func (canon error-context.drop)))"), Some(Feature::ErrorContext));
        assert_eq!(missing("(component (type (stream u8)))"), Some(Feature::ComponentAsync));
        assert_eq!(missing("(component (core func (canon thread.index)))"), Some(Feature::ComponentThreads));
        // Two at once, and names as interfaces have them.
        let both = r#"(component (import "a:b/c@0.1.0" (instance)) (core module (memory i64 1) (tag)))"#;
        assert_eq!(missing(both), Some(Feature::Memory64));
        let named = r#"(component (import "a:b/c@0.1.0" (instance)) (core module (tag)))"#;
        assert_eq!(missing(named), Some(Feature::Exceptions));
    }

    /// What this module takes an engine to have is what it has.
    #[test]
    fn what_is_not_valid_here_is_refused_by_the_engine_and_what_is_is_not() {
        let engine = |features| {
            let kind = crate::config::Kind { profile: crate::Profile::Plain, features };
            wasmtime::Engine::new(&crate::EngineConfig::on_demand().wasmtime(kind, None)).unwrap()
        };
        let (none, with_async) = (engine(Features::NONE), engine(ASYNC));
        let cases = [
            ("(func)", true),
            ("(memory 1) (memory 1)", true),
            ("(memory 1) (func (drop (v128.load (i32.const 0))))", true),
            ("(func return_call 0)", true),
            ("(func (param i32) (drop (ref.func 0))) (elem declare func 0)", true),
            ("(type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0)))", true),
            ("(global i32 (i32.add (i32.const 1) (i32.const 1)))", true),
            ("(func (param v128) (drop (i32x4.relaxed_trunc_f32x4_s (local.get 0))))", true),
            ("(memory i64 1)", false),
            ("(memory 1 2 shared)", false),
            ("(tag)", false),
            ("(type (struct))", false),
            ("(func (param anyref))", false),
            ("(type (sub (func)))", false),
            ("(func (param externref))", false),
            ("(memory 1 (pagesize 1))", false),
        ];
        for (fields, is_taken) in cases {
            let binary = wat::parse_str(format!("(component (core module {fields}))")).unwrap();
            assert_eq!(none.precompile_component(&binary).is_ok(), is_taken, "{fields}");
            assert_eq!(with_async.precompile_component(&binary).is_ok(), is_taken, "{fields}");
            assert_eq!(missing_feature(&binary, Features::NONE).is_none(), is_taken, "{fields}");
        }
        let stream = wat::parse_str("(component (type (stream u8)))").unwrap();
        assert!(none.precompile_component(&stream).is_err());
        assert!(with_async.precompile_component(&stream).is_ok());
        assert_eq!(missing_feature(&stream, ASYNC), None);
    }
}
