//! Stub
#[derive(clap::Args)]
pub(crate) struct Args {}
#[derive(clap::Args)]
pub(crate) struct LeakArgs {}
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    Ok(())
}
pub(crate) fn leak_check(_: &LeakArgs) -> anyhow::Result<()> {
    Ok(())
}
