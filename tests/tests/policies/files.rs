//! What lies beside a policy: its pin, its vectors; and who may have put it there.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use coroner_tests::binary::{bundled_policy, digest_of};
use coroner_tests::guests::{component, padded, wrong_world};

use super::{dropped, dropped_with, settings};
use coroner::policy::{Compile, Host, Keeper, Settings};

#[test]
fn a_pin_holds_its_policy_to_one_digest() {
    let passer = component("passer").unwrap();
    let pin = |digest: &str| format!("sha256 = '{digest}'");
    let good = pin(&digest_of(&passer));
    let taken = dropped(&[("50-x.wasm", &passer), ("50-x.toml", good.as_bytes())]);
    assert_eq!((taken.refused.len(), taken.lineup.policies.len()), (0, 2));
    let other = pin(&digest_of(b"other"));
    let dropped = dropped(&[("50-x.wasm", &passer), ("50-x.toml", other.as_bytes())]);
    assert!(dropped.reason().contains("50-x.toml pins sha256:"), "{}", dropped.reason());
}

#[test]
fn the_operators_vectors_decide_whether_a_policy_is_taken() {
    let policy = fs::read(bundled_policy("kubernetes").unwrap()).unwrap();
    let vectors = include_str!("../../../router/src/demo/recording.jsonl");
    let taken = dropped(&[("50-x.wasm", &policy), ("50-x.jsonl", vectors.as_bytes())]);
    assert_eq!((taken.refused.len(), taken.lineup.policies.len()), (0, 2));
    let wrong = vectors.replacen(r#""actions":["task-oom"],"illegal""#, r#""actions":[],"illegal""#, 1);
    assert_ne!(wrong, vectors);
    let refused = dropped(&[("50-x.wasm", &policy), ("50-x.jsonl", wrong.as_bytes())]);
    assert!(refused.reason().contains("answers vector 1 (demo:"), "{}", refused.reason());
    assert!(refused.reason().ends_with("the vector says []"), "{}", refused.reason());
    let broken = dropped(&[("50-x.wasm", &policy), ("50-x.jsonl", b"{}")]);
    assert!(broken.reason().contains("vector that is no audit record, line 1"), "{}", broken.reason());
}

#[test]
fn files_that_are_too_large_or_of_another_world_are_refused() {
    let passer = component("passer").unwrap();
    let dropped = |bytes: &[u8]| dropped(&[("50-x.wasm", bytes)]).reason().to_owned();
    assert_eq!(dropped(&padded(&passer, (32 << 20) + 1)), "50-x.wasm is over 33554432 bytes");
    let reason = dropped(&wrong_world().unwrap());
    assert!(reason.ends_with("does not export coroner:policy/rules@0.1.0: it exports run"), "{reason}");
}

#[test]
fn strays_are_named_and_pipes_hold_nobody_up() {
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
    let keeper = Keeper::start(std::sync::Arc::new(Host::new(settings).unwrap()));
    let reasons: Vec<&str> = keeper.refused().iter().map(|it| it.reason.as_str()).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    for says in
        ["readme.txt is no policy", "60-alone.toml is no policy", "50-pipe.wasm: it is no regular file"]
    {
        assert!(reasons.iter().any(|reason| reason.contains(says)), "{says}: {reasons:?}");
    }
}

#[test]
fn a_directory_that_others_can_write_to_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("50-x.wasm"), component("passer").unwrap()).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let settings = Settings { directory: Some(folder.path().to_owned()), ..settings() };
    let keeper = Keeper::start(std::sync::Arc::new(Host::new(settings).unwrap()));
    let [refused] = keeper.refused() else { panic!("{:?}", keeper.refused()) };
    assert!(refused.reason.contains("(mode 777): chmod go-w"), "{}", refused.reason);
    let names: Vec<_> = keeper.lineups().now().policies.iter().map(|it| it.name.clone()).collect();
    assert_eq!(names, ["00-kubernetes"], "the built-in default rules");
}

#[test]
fn what_is_compiled_is_kept_and_a_broken_entry_is_compiled_anew() {
    let cache = tempfile::tempdir().unwrap();
    let with = |program| Settings {
        cache: Some(cache.path().to_owned()),
        compile: Compile { program, ..Compile::default() },
        ..settings()
    };
    let compiler = settings().compile.program;
    let start = |program| dropped_with(with(program), &[]);
    assert!(start(None).reason().contains("nothing compiles here"), "there is nothing in the cache yet");
    assert_eq!(start(compiler.clone()).refused, []);
    assert_eq!(start(None).refused, [], "from the cache: nobody could compile it");
    let entry = fs::read_dir(cache.path()).unwrap().map(|it| it.unwrap().path());
    let entry = entry.into_iter().find(|it| it.extension().is_some_and(|it| it == "cwasm")).unwrap();
    let whole = fs::read(&entry).unwrap();
    for broken in [&whole[..whole.len() / 2], b"", &[&whole[..5000], b"x", &whole[5001..]].concat()] {
        fs::write(&entry, broken).unwrap();
        assert!(start(None).reason().contains("nothing compiles here"), "a broken entry is none");
        assert_eq!(start(compiler.clone()).refused, []);
        assert_eq!(fs::read(&entry).unwrap().len(), whole.len(), "and is written anew");
    }
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(start(None).reason().contains("nothing compiles here"), "others could have written it");
}
