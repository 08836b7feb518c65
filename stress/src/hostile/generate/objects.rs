//! Exceptions and objects that are collected, as many as make the compiler slow.

use anyhow::Result;

/// A component with a function of this body, which has one parameter, and that which it needs.
fn with_body(needs: &str, body: &str) -> Result<Vec<u8>> {
    Ok(wat::parse_str(format!("(component (core module {needs} (func (export \"f\") (param i32) {body})))"))?)
}

/// This many calls in the scope of handlers, over locals that each of them sets and that are used after it.
pub(super) fn exception_edges(calls: usize, handlers: usize, locals: usize) -> Result<Vec<u8>> {
    let call = |n: usize| match locals {
        0 => "(drop (call $g))".to_owned(),
        _ => format!("(local.set {} (call $g))", 1 + n % locals),
    };
    let set: String = (0..locals).map(call).collect();
    let calls: String = (0..calls).map(call).collect();
    let used: String = (0..locals).map(|n| format!("(call $use (local.get {}))", n + 1)).collect();
    let body = format!(
        "(local {}) {set} (block $on (try_table {} {calls})) {used}",
        "i32 ".repeat(locals),
        "(catch $e $on)".repeat(handlers),
    );
    with_body("(tag $e) (func $g (result i32) (i32.const 1)) (func $use (param i32))", &body)
}

/// Handlers within handlers, in the scope of all of which is one call.
pub(super) fn nested_handlers(depth: usize) -> Result<Vec<u8>> {
    let body = format!("(block $on {} (call $g) {})", "try_table (catch $e $on) ".repeat(depth), "end ".repeat(depth));
    with_body("(tag $e) (func $g)", &body.replace("(call $g)", "call $g"))
}

/// Handlers of a tag with this many parameters, in the scope of which are ten calls.
pub(super) fn caught_values(params: usize) -> Result<Vec<u8>> {
    let types = "i32 ".repeat(params);
    let body = format!(
        "(block $on (result {types}) (try_table {} {}) unreachable) {}",
        "(catch $e $on)".repeat(50),
        "(call $g)".repeat(10),
        "drop ".repeat(params),
    );
    with_body(&format!("(tag $e (param {types})) (func $g)"), &body)
}

/// Objects with this many fields each.
pub(super) fn fields(fields: usize) -> Result<Vec<u8>> {
    let needs = format!("(type $s (struct {}))", "(field (mut i32))".repeat(fields));
    with_body(&needs, &"(drop (struct.new_default $s))".repeat(10))
}

/// An array of this many operands.
pub(super) fn fixed_array(elements: usize) -> Result<Vec<u8>> {
    let operands = "(local.get 0)".repeat(elements);
    with_body("(type $a (array i32))", &format!("(drop (array.new_fixed $a {elements} {operands}))"))
}

/// As many references as there are calls that they stay alive over.
pub(super) fn references_over_calls(n: usize) -> Result<Vec<u8>> {
    let set: String = (1..=n).map(|local| format!("(local.set {local} (struct.new $s (local.get 0)))")).collect();
    let used: String = (1..=n).map(|local| format!("(drop (struct.get $s 0 (local.get {local})))")).collect();
    let locals = "(ref null $s) ".repeat(n);
    let body = format!("(local {locals}) {set} {} {used}", "(call $g)".repeat(n));
    with_body("(type $s (struct (field i32))) (func $g)", &body)
}

/// Types of objects, of ten fields each and all different.
pub(super) fn object_types(n: usize) -> Result<Vec<u8>> {
    let fields = |n: usize| -> String {
        (0..10).map(|bit| if n >> bit & 1 == 1 { "(field i64)" } else { "(field i32)" }).collect()
    };
    let one = |n| match n {
        0 => format!("(type (sub (struct {})))", fields(n)),
        // Otherwise those of the same fields would be one type.
        n => format!("(type (sub (struct {} (field (ref null {})))))", fields(n), n - 1),
    };
    with_body(&(0..n).map(one).collect::<String>(), "")
}

/// One instruction on objects, this often.
pub(super) fn each(instruction: &str, n: usize) -> Result<Vec<u8>> {
    let needs = "(type $f (func)) (type $s (sub (struct (field (mut i32)) (field (mut (ref null $f))) (field (mut (ref null $s))))))
        (type $t (sub $s (struct (field (mut i32)) (field (mut (ref null $f))) (field (mut (ref null $s))) (field i64))))
        (type $a (array (mut i32))) (type $r (array (mut (ref null $s)))) (tag $e (param i32)) (func $g (type $f))
        (elem $elem (ref null $s) (ref.null $s)) (data $data \"0123456789\") (elem declare func $g)";
    let body =
        "(local $s (ref null $s)) (local $a (ref null $a)) (local $r (ref null $r)) (local $x anyref) (local $e exnref)
        (local $h (ref null $f))"
            .to_owned()
            + &instruction.repeat(n);
    with_body(needs, &body)
}

/// The instructions of [`each`].
pub(crate) const EACH: [(&str, &str); 22] = [
    ("struct_new", "(local.set $s (struct.new $s (local.get 0) (local.get $h) (local.get $s)))"),
    ("struct_new_default", "(local.set $s (struct.new_default $s))"),
    ("struct_get", "(local.set 0 (struct.get $s 0 (local.get $s)))"),
    ("struct_get_function", "(local.set $h (struct.get $s 1 (local.get $s)))"),
    ("struct_get_object", "(local.set $s (struct.get $s 2 (local.get $s)))"),
    ("struct_set", "(struct.set $s 0 (local.get $s) (local.get 0))"),
    ("struct_set_function", "(struct.set $s 1 (local.get $s) (local.get $h))"),
    ("struct_set_object", "(struct.set $s 2 (local.get $s) (local.get $s))"),
    ("array_new", "(local.set $a (array.new $a (local.get 0) (local.get 0)))"),
    ("array_new_default", "(local.set $a (array.new_default $a (local.get 0)))"),
    ("array_new_data", "(local.set $a (array.new_data $a $data (local.get 0) (local.get 0)))"),
    ("array_new_elem", "(local.set $r (array.new_elem $r $elem (local.get 0) (local.get 0)))"),
    ("array_get", "(local.set 0 (array.get $a (local.get $a) (local.get 0)))"),
    ("array_set_object", "(array.set $r (local.get $r) (local.get 0) (local.get $s))"),
    ("array_fill", "(array.fill $r (local.get $r) (local.get 0) (local.get $s) (local.get 0))"),
    ("array_copy", "(array.copy $r $r (local.get $r) (local.get 0) (local.get $r) (local.get 0) (local.get 0))"),
    ("array_init_data", "(array.init_data $a $data (local.get $a) (local.get 0) (local.get 0) (local.get 0))"),
    ("ref_test", "(local.set 0 (ref.test (ref $t) (local.get $x)))"),
    ("ref_cast", "(local.set $s (ref.cast (ref null $s) (local.get $x)))"),
    ("br_on_cast", "(block (result anyref) (br_on_cast 0 anyref (ref $s) (local.get $x))) (local.set $x)"),
    ("throw", "(if (local.get 0) (then (throw $e (local.get 0))))"),
    ("throw_ref", "(if (local.get 0) (then (throw_ref (local.get $e))))"),
];
