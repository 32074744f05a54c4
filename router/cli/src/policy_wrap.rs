//! `coroner policy wrap`: makes a component of a core module that carries its world, as the SDK's
//! macro adds it.

use std::path::Path;
use std::process::ExitCode;

use wit_component::ComponentEncoder;

use crate::args::{FAILED, WRONG};
use crate::render::{Screen, fail};

pub(crate) fn run(core: &Path, file: &Path) -> ExitCode {
    let failed = |path: &Path, error: std::io::Error| fail(FAILED, format!("{}: {error}", path.display()));
    let module = match std::fs::read(core) {
        Ok(module) => module,
        Err(error) => return failed(core, error),
    };
    let mut encoder = ComponentEncoder::default();
    let component = match encoder.validate(true).module(&module).and_then(ComponentEncoder::encode) {
        Ok(component) => component,
        Err(error) => {
            return fail(WRONG, format!("{} cannot be made a component: {error:#}", core.display()));
        }
    };
    if let Err(error) = std::fs::write(file, &component) {
        return failed(file, error);
    }
    let mut screen = Screen::new();
    screen.line(format!(
        "{}: {} bytes; `coroner policy check {0}` checks it",
        file.display(),
        component.len()
    ));
    screen.finish(ExitCode::SUCCESS)
}
