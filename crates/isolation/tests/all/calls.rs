//! Calls that go well, and calls that are refused without costing the sandbox.

use airssys_wasm_engine::{
    ExportError,
    // The derive macros want it under this name.
    wasmtime::{
        self,
        component::{ComponentType, Lift, Lower, Val},
    },
};
use airssys_wasm_fixtures::{ADD, MINIMAL, RUST, VALUES};
use airssys_wasm_isolation::{ArgumentError, CrashKind, DynamicCallError};

use crate::{Host, limits, sandbox, spec};

const API: &str = "fixture:guest/api@1.0.0";

#[tokio::test]
async fn a_sandbox_comes_back_from_a_call_and_can_be_called_again() {
    let (spec, mut sandbox) = sandbox(ADD, limits()).await;
    let add = sandbox.typed::<(i32, i32), (i32,)>(&spec.export("add").unwrap()).unwrap();
    for i in 0..10 {
        let (sum, back) = sandbox.call(&add, (i, 1)).await.unwrap();
        assert_eq!(sum, (i + 1,));
        sandbox = back;
    }
}

#[tokio::test]
async fn a_compiled_guest_takes_and_gives_every_shape() {
    #[derive(ComponentType, Lift, Lower, Clone, Debug, PartialEq)]
    #[component(record)]
    struct Point {
        x: i32,
        y: i32,
        label: Option<String>,
    }
    #[derive(ComponentType, Lift, Lower, Clone, Debug, PartialEq)]
    #[component(variant)]
    enum Shape {
        #[component(name = "dot")]
        Dot(Point),
        #[component(name = "line")]
        Line((Point, Point)),
        #[component(name = "nothing")]
        Nothing,
    }
    let (spec, mut sandbox) = sandbox(RUST, limits()).await;
    let echo = sandbox.typed::<(Vec<u8>,), (Vec<u8>,)>(&spec.export(&format!("{API}#echo")).unwrap()).unwrap();
    let shift = sandbox.typed::<(Shape,), (Shape,)>(&spec.export(&format!("{API}#shift")).unwrap()).unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    let (echoed, sandbox) = sandbox.call(&echo, (bytes.clone(),)).await.unwrap();
    assert_eq!(echoed.0, bytes);
    let at = |x| Point { x, y: 5, label: Some("π".into()) };
    let (shifted, sandbox) = sandbox.call(&shift, (Shape::Line((at(1), at(2))),)).await.unwrap();
    assert_eq!(shifted.0, Shape::Line((at(2), at(3))));
    let (shifted, _) = sandbox.call(&shift, (Shape::Nothing,)).await.unwrap();
    assert_eq!(shifted.0, Shape::Nothing);
}

#[tokio::test]
async fn an_error_that_a_guest_returns_is_an_answer() {
    let (spec, mut sandbox) = sandbox(RUST, limits()).await;
    let parse = spec.export(&format!("{API}#parse")).unwrap();
    let parse = sandbox.typed::<(String,), (Result<u32, String>,)>(&parse).unwrap();
    let (answer, sandbox) = sandbox.call(&parse, ("seven".into(),)).await.unwrap();
    assert_eq!(answer.0.unwrap_err(), "invalid digit found in string");
    let (answer, _) = sandbox.call(&parse, ("7".into(),)).await.unwrap();
    assert_eq!(answer.0, Ok(7));

    let (spec, mut sandbox) = crate::sandbox(VALUES, limits()).await;
    let refuse = sandbox.typed::<(), (Result<(), u32>,)>(&spec.export("refuse").unwrap()).unwrap();
    assert_eq!(sandbox.call(&refuse, ()).await.unwrap().0, (Err(7),));
}

#[tokio::test]
async fn a_mistyped_handle_is_refused_before_any_call() {
    let (spec, mut sandbox) = sandbox(ADD, limits()).await;
    let export = spec.export("add").unwrap();
    let error = sandbox.typed::<(String,), (i32,)>(&export).unwrap_err();
    let ExportError::Mistyped { actual, .. } = &error else { panic!("{error:?}") };
    assert_eq!(actual, "add: func(a: s32, b: s32) -> s32");
    let add = sandbox.typed::<(i32, i32), (i32,)>(&export).unwrap();
    assert_eq!(sandbox.call(&add, (1, 1)).await.unwrap().0, (2,));
    let error = spec.export("subtract").unwrap_err();
    assert!(error.to_string().contains("add: func(a: s32, b: s32) -> s32"), "{error}");
}

#[tokio::test]
async fn dynamic_arguments_are_checked_before_the_call_and_give_the_sandbox_back() {
    let (spec, mut sandbox) = sandbox(ADD, limits()).await;
    let add = sandbox.dynamic(&spec.export("add").unwrap()).unwrap();
    let bad = [
        (vec![Val::S32(1)], ArgumentError::Count { expected: 2, given: 1 }),
        (vec![Val::S32(1), Val::String("1".into())], ArgumentError::Type { index: 1 }),
        (vec![Val::U32(1), Val::S32(1)], ArgumentError::Type { index: 0 }),
    ];
    for (arguments, expected) in bad {
        match sandbox.call_dynamic(&add, &arguments).await {
            Err(DynamicCallError::Arguments { error, sandbox: back }) => {
                assert_eq!(error, expected);
                sandbox = back;
            }
            other => panic!("{other:?}"),
        }
    }
    let (sum, _) = sandbox.call_dynamic(&add, &[Val::S32(20), Val::S32(22)]).await.unwrap();
    assert_eq!(sum, [Val::S32(42)]);
}

#[tokio::test]
async fn dynamic_calls_take_every_shape() {
    let (spec, mut sandbox) = sandbox(RUST, limits()).await;
    let shift = sandbox.dynamic(&spec.export(&format!("{API}#shift")).unwrap()).unwrap();
    let dot = |x, label: Option<&str>| {
        let label = label.map(|label| Box::new(Val::String(label.into())));
        let fields = [("x", Val::S32(x)), ("y", Val::S32(0)), ("label", Val::Option(label))];
        let record = Val::Record(fields.map(|(name, value)| (name.to_owned(), value)).into());
        Val::Variant("dot".into(), Some(Box::new(record)))
    };
    let (shifted, sandbox) = sandbox.call_dynamic(&shift, &[dot(1, Some("a"))]).await.unwrap();
    assert_eq!(shifted, [dot(2, Some("a"))]);
    let wrong = [
        Val::Variant("square".into(), None),
        Val::Variant("nothing".into(), Some(Box::new(Val::Bool(true)))),
        Val::Variant("dot".into(), None),
        Val::Variant("dot".into(), Some(Box::new(Val::Record(vec![("x".into(), Val::S32(1))])))),
        Val::Tuple(vec![]),
    ];
    let mut sandbox = sandbox;
    for argument in wrong {
        match sandbox.call_dynamic(&shift, std::slice::from_ref(&argument)).await {
            Err(DynamicCallError::Arguments { sandbox: back, .. }) => sandbox = back,
            other => panic!("{argument:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_handle_of_another_sandbox_harms_only_the_call() {
    let (spec, mut first) = sandbox(ADD, limits()).await;
    let add = first.typed::<(i32, i32), (i32,)>(&spec.export("add").unwrap()).unwrap();
    let second = spec.instantiate(Host::default()).await.unwrap();
    let crash = second.call(&add, (1, 1)).await.unwrap_err();
    assert!(matches!(crash.kind(), CrashKind::HostPanic { .. }), "{crash}");
    assert_eq!(first.call(&add, (1, 1)).await.unwrap().0, (2,));
}

#[tokio::test]
async fn usage_tells_memory_and_time_if_asked() {
    let (spec, mut sandbox) = sandbox(MINIMAL, limits()).await;
    assert_eq!(sandbox.usage().memory, 65_536);
    let export = spec.export("run").unwrap();
    let run = sandbox.typed::<(), (i32,)>(&export).unwrap();
    let (_, sandbox) = sandbox.call(&run, ()).await.unwrap();
    assert_eq!(sandbox.usage().elapsed_ns, None);

    let spec = spec.clone().with_measured_time();
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let run = sandbox.typed::<(), (i32,)>(&export).unwrap();
    let (_, sandbox) = sandbox.call(&run, ()).await.unwrap();
    assert!(sandbox.usage().elapsed_ns.is_some_and(|ns| ns > 0));
    assert_eq!(sandbox.usage().fuel, None);
}

#[tokio::test]
async fn the_embedders_state_is_at_hand() {
    let spec = spec(airssys_wasm_fixtures::HOST_CALLS, limits());
    let mut sandbox = spec.instantiate(Host { steps: 10, ..Host::default() }).await.unwrap();
    let steps = sandbox.typed::<(u32,), (u32,)>(&spec.export("steps").unwrap()).unwrap();
    let (last, mut sandbox) = sandbox.call(&steps, (5,)).await.unwrap();
    assert_eq!((last.0, sandbox.ext().steps), (15, 15));
    sandbox.ext_mut().steps = 0;
    let (last, _) = sandbox.call(&steps, (1,)).await.unwrap();
    assert_eq!(last, (1,));
}
