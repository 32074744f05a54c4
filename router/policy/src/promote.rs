//! Promotion: enforces a shadow policy's rulings from now on. The mode is written to the policy's
//! own file, so that it holds after a restart.

use std::fs;
use std::io;
use std::path::Path;

use toml_edit::DocumentMut;

use super::policy::Policy;
use super::report::Promoted;
use super::settings::Settings;
use coroner_core::mode::PolicyMode;

/// Returns the difference report, and promotes the policy unless it had faults.
pub(super) fn promote(settings: &Settings, policy: &Policy, force: bool) -> Promoted {
    let difference = (policy.mode == PolicyMode::Shadow).then(|| policy.counts.difference());
    let faults = difference.as_ref().map_or(0, |it| it.faults);
    let because = if settings.shadow_all {
        Some("the router runs with --shadow-all: start it without".to_owned())
    } else if policy.mode != PolicyMode::Shadow {
        Some(format!("it is in mode {} already", policy.mode.name()))
    } else if faults > 0 && !force {
        Some(format!(
            "it had {faults} faults: `coroner policy inspect {}` shows them, --force promotes it all the same",
            policy.name
        ))
    } else {
        let file = settings.directory.as_deref().map(|it| it.join(format!("{}.toml", policy.name)));
        file.and_then(|file| {
            write(&file).err().map(|error| {
                format!("cannot write {}: {error}. Set mode = \"enforce\" there yourself", file.display())
            })
        })
    };
    Promoted { promoted: because.is_none(), because, difference }
}

/// Changes the mode and leaves the rest of the file as it is.
fn write(file: &Path) -> io::Result<()> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut document: DocumentMut = text.parse().map_err(io::Error::other)?;
    let mut mode = toml_edit::Value::from(PolicyMode::Enforce.name());
    if let Some(old) = document.get("mode").and_then(toml_edit::Item::as_value) {
        mode.decor_mut().clone_from(old.decor());
    }
    document["mode"] = toml_edit::Item::Value(mode);
    // A reload in between skips a name that starts with a dot.
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let partial = file.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&partial, document.to_string())?;
    if let Ok(meta) = fs::metadata(file) {
        fs::set_permissions(&partial, meta.permissions())?;
    }
    fs::rename(&partial, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_keeps_the_rest_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("50-x.toml");
        write(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "mode = \"enforce\"\n");
        fs::write(&file, "# ours\nmode = \"shadow\" # for now\n\n[config]\nx = 1\n").unwrap();
        write(&file).unwrap();
        let expect = "# ours\nmode = \"enforce\" # for now\n\n[config]\nx = 1\n";
        assert_eq!(fs::read_to_string(&file).unwrap(), expect);
        fs::write(&file, "mode = ").unwrap();
        assert!(write(&file).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
