//! Modules at random, from a seed: what wasm-smith can make, exceptions and garbage collection included.

use airssys_wasm_fuzz::TARGETS;

/// Bytes from a number, by splitmix64.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    std::iter::repeat_with(&mut next).take(length.div_ceil(8)).flatten().take(length).collect()
}

/// `SEEDS` in the environment is how many, 100 by default.
#[test]
fn guests_out_of_nothing_with_objects_and_exceptions() {
    let seeds = std::env::var("SEEDS").map_or(100, |seeds| seeds.parse().expect("a number"));
    let (_, guest) = TARGETS.iter().find(|(name, _)| *name == "guest").expect("a target");
    for seed in 0..seeds {
        // Shown where the test fails.
        println!("seed {seed}");
        let mut data = bytes(seed, 2_000);
        // A core module with all of it.
        data[0] = 4;
        guest(&data);
    }
}
