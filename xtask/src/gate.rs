//! placeholder
pub(crate) fn run(_: &[String]) -> anyhow::Result<()> {
    Ok(())
}
pub(crate) fn list(_: &[String]) -> anyhow::Result<()> {
    Ok(())
}
