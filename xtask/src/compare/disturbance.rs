//! Somebody else on the machine, made on purpose: a process on each core that computes and rests at random, for
//! milliseconds to seconds, as neighbours do.

use std::{
    hint::black_box,
    io::Read,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use airssys_wasm_measurements::{process, stats::SplitMix};
use anyhow::{Context, Result};

/// Compute and rest at random on one core, until standard input ends.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The core to stay on
    #[arg(long)]
    core: usize,
    /// What decides when, to do the same again
    #[arg(long)]
    seed: u64,
}

/// A disturbance that ends when this is dropped.
pub(super) struct Disturbance(Vec<Child>);

impl Disturbance {
    /// Begins one on all cores.
    pub(super) fn start(seed: u64) -> Result<Self> {
        // Which is this program also where it was built anew since.
        let itself = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
        let mut all = Self(Vec::new());
        for core in process::cores() {
            let mut command = Command::new(&itself);
            command.args(["disturb", "--core", &core.to_string(), "--seed", &(seed + core as u64).to_string()]);
            all.0.push(command.stdin(Stdio::piped()).spawn().context("cannot run this program")?);
        }
        Ok(all)
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    process::stay_on(args.core).with_context(|| format!("cannot stay on core {}", args.core))?;
    // Whoever has started this may end without a word.
    std::thread::spawn(|| {
        _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut random = SplitMix(args.seed);
    loop {
        let (computes, length) = phase(&mut random);
        if computes {
            let started = Instant::now();
            while started.elapsed() < length {
                (0..1_000).for_each(|n| _ = black_box(n));
            }
        } else {
            std::thread::sleep(length);
        }
    }
}

/// Whether to compute next, which is so for half of the time, and for how long: a millisecond to two seconds, and as likely
/// one to ten milliseconds as ten to a hundred.
fn phase(random: &mut SplitMix) -> (bool, Duration) {
    let exponent = random.below(3_300) as f64 / 1_000.0;
    (random.below(2) == 0, Duration::from_secs_f64(10_f64.powf(exponent) / 1_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbance_lasts_for_milliseconds_to_seconds_and_is_the_same_each_time() {
        let phases = || {
            let mut random = SplitMix(1);
            (0..10_000).map(|_| phase(&mut random)).collect::<Vec<_>>()
        };
        let all = phases();
        let (least, most) = (all.iter().map(|(_, length)| *length).min(), all.iter().map(|(_, length)| *length).max());
        assert!(least.unwrap() >= Duration::from_millis(1) && most.unwrap() <= Duration::from_secs(2));
        assert!(most.unwrap() > Duration::from_millis(1_500));
        let computing: Duration = all.iter().filter(|(computes, _)| *computes).map(|(_, length)| *length).sum();
        let share = computing.as_secs_f64() / all.iter().map(|(_, length)| length.as_secs_f64()).sum::<f64>();
        assert!((0.45..0.55).contains(&share), "{share}");
        assert_eq!(all, phases());
    }
}
