//! What lies beside a policy: its pin, its vectors; and the owner and mode that its files need.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use coroner_tests::binary::{bundled_policy, digest_of};
use coroner_tests::guests::{component, padded, wrong_world};

use super::{dropped, dropped_with, settings};
use coroner_policy::{CompileSettings, Host, PolicyManager, Settings};

#[test]
fn pin_binds_its_policy_to_one_digest() {
    let passer = component("passer").unwrap();
    let pin = |digest: &str| format!("sha256 = '{digest}'");
    let good = pin(&digest_of(&passer));
    let taken = dropped(&[("50-x.wasm", &passer), ("50-x.toml", good.as_bytes())]);
    assert_eq!((taken.refused.len(), taken.snapshot.policies.len()), (0, 2));
    let other = pin(&digest_of(b"other"));
    let dropped = dropped(&[("50-x.wasm", &passer), ("50-x.toml", other.as_bytes())]);
    assert!(dropped.reason().contains("50-x.toml pins sha256:"), "{}", dropped.reason());
}

#[test]
fn operator_vectors_decide_whether_a_policy_is_loaded() {
    let policy = fs::read(bundled_policy("kubernetes").unwrap()).unwrap();
    let vectors = include_str!("../../../../router/cli/src/demo/recording.jsonl");
    let taken = dropped(&[("50-x.wasm", &policy), ("50-x.jsonl", vectors.as_bytes())]);
    assert_eq!((taken.refused.len(), taken.snapshot.policies.len()), (0, 2));
    let wrong = vectors.replacen(r#""actions":["task-oom"],"illegal""#, r#""actions":[],"illegal""#, 1);
    assert_ne!(wrong, vectors);
    let refused = dropped(&[("50-x.wasm", &policy), ("50-x.jsonl", wrong.as_bytes())]);
    assert!(refused.reason().contains("answers vector 1 (demo:"), "{}", refused.reason());
    assert!(refused.reason().ends_with("the vector expects []"), "{}", refused.reason());
    let broken = dropped(&[("50-x.wasm", &policy), ("50-x.jsonl", b"{}")]);
    assert!(broken.reason().contains("vector that is not an audit record, line 1"), "{}", broken.reason());
}

#[test]
fn files_that_are_too_large_or_of_another_world_are_refused() {
    let passer = component("passer").unwrap();
    let dropped = |bytes: &[u8]| dropped(&[("50-x.wasm", bytes)]).reason().to_owned();
    assert_eq!(dropped(&padded(&passer, (32 << 20) + 1)), "50-x.wasm is over 33554432 bytes");
    let reason = dropped(&wrong_world().unwrap());
    assert!(
        reason.ends_with(
            "does not export coroner:policy/rules@0.1.0 or coroner:policy/rules@0.2.0: it exports run"
        ),
        "{reason}"
    );
}

#[test]
fn stray_files_are_named_and_pipes_do_not_block() {
    let folder = tempfile::tempdir().unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.path().join("50-pipe.wasm"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    fs::write(folder.path().join("readme.txt"), "").unwrap();
    fs::write(folder.path().join("60-alone.toml"), "").unwrap();
    fs::write(folder.path().join(".60-hidden.wasm"), "").unwrap();
    let settings = Settings { directory: Some(folder.path().to_owned()), ..settings() };
    let manager = PolicyManager::start(std::sync::Arc::new(Host::new(settings).unwrap()));
    let reasons: Vec<&str> = manager.refused().iter().map(|it| it.reason.as_str()).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    for expected in [
        "readme.txt is not a policy file",
        "60-alone.toml is not a policy file",
        "50-pipe.wasm: not a regular file",
    ] {
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{expected}: {reasons:?}");
    }
}

#[test]
fn directory_writable_by_others_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("50-x.wasm"), component("passer").unwrap()).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let settings = Settings { directory: Some(folder.path().to_owned()), ..settings() };
    let manager = PolicyManager::start(std::sync::Arc::new(Host::new(settings).unwrap()));
    let [refused] = manager.refused() else { panic!("{:?}", manager.refused()) };
    assert!(refused.reason.contains("(mode 777): chmod go-w"), "{}", refused.reason);
    let names: Vec<_> = manager.active_chain().now().policies.iter().map(|it| it.name.clone()).collect();
    assert_eq!(names, ["00-kubernetes"], "the built-in default rules");
}

#[test]
fn compiled_policy_is_cached_and_broken_entry_recompiled() {
    let cache = tempfile::tempdir().unwrap();
    let with = |program| Settings {
        cache: Some(cache.path().to_owned()),
        compile: CompileSettings { program, ..CompileSettings::default() },
        ..settings()
    };
    let compiler = settings().compile.program;
    let start = |program| dropped_with(with(program), &[]);
    assert!(start(None).reason().contains("no compiler"), "there is nothing in the cache yet");
    assert_eq!(start(compiler.clone()).refused, []);
    assert_eq!(start(None).refused, [], "from the cache: there is no compiler");
    let entry = fs::read_dir(cache.path()).unwrap().map(|it| it.unwrap().path());
    let entry = entry.into_iter().find(|it| it.extension().is_some_and(|it| it == "cwasm")).unwrap();
    let whole = fs::read(&entry).unwrap();
    for broken in [&whole[..whole.len() / 2], b"", &[&whole[..5000], b"x", &whole[5001..]].concat()] {
        fs::write(&entry, broken).unwrap();
        assert!(start(None).reason().contains("no compiler"), "a broken entry is none");
        assert_eq!(start(compiler.clone()).refused, []);
        assert_eq!(fs::read(&entry).unwrap().len(), whole.len(), "and is written anew");
    }
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(start(None).reason().contains("no compiler"), "others could have written it");
}
