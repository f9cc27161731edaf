//! The policy's rules, without any server.

use std::os::unix::fs::PermissionsExt;

use super::*;

const TEXT: &str = r#"
# the owner's comment
[instances.main]
datadir = "/srv/data"
socket = "/srv/sock"
service = { unit = "mariadb" }
roles = ["source"]
start_timeout = "2m"

[instances.rnd]
datadir = "/srv/rnd"
socket = "/srv/rnd.sock"
service = { start = ["/bin/up"], stop = ["/bin/down"] }
roles = ["destination"]
"#;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    std::fs::write(&path, TEXT).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    (folder, path)
}

fn strict(path: &Path) -> Authority {
    Authority { path: path.to_owned(), trusting: false }
}

fn none() -> Outcome<Instance> {
    panic!("an installed agent never looks around by itself")
}

#[test]
fn a_strict_agent_serves_what_the_policy_names_in_its_role() {
    let (_folder, path) = folder();
    let named = |name: &str| Target::Named(name.to_owned());
    let main = strict(&path).instance(Role::Source, &named("main"), none).unwrap();
    assert_eq!((main.instance.start_timeout_s, main.instance.stop_timeout_s), (120, 900));
    assert_eq!(main.instance.service, Service::Systemd { unit: "mariadb.service".into() });
    let refused = |role, target: &Target| strict(&path).instance(role, target, none).unwrap_err().to_string();
    assert!(refused(Role::Destination, &named("main")).contains("may not be a destination"));
    assert!(refused(Role::Source, &named("rnd")).contains("may not be a source"));
    assert!(refused(Role::Source, &named("nobody")).contains("knows no instance"));
    let described = Target::Described(Box::new(main.instance));
    assert!(refused(Role::Source, &described).contains("its host's own policy"));
    assert_eq!(strict(&path).instance(Role::Destination, &Target::Only, none).unwrap().name.unwrap(), "rnd");
    let nowhere = strict(Path::new("/nonexistent/host.toml"));
    assert!(nowhere.instance(Role::Source, &named("main"), none).unwrap_err().to_string().contains("no policy"));
}

#[test]
fn a_policy_that_others_can_write_is_not_believed() {
    let (folder, path) = folder();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    assert!(Policy::read(&path).unwrap_err().to_string().contains("others could have written"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    Policy::read(&path).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Policy::read(&path).unwrap_err().to_string().contains("others could have put it"));
}

#[test]
fn errors_name_file_and_key() {
    for (text, word) in [
        ("[instances.a]\ndatadri = \"/x\"\n", "datadri"),
        ("[instances.a]\ndatadir = \"x\"\n", "absolute"),
        ("[instances.a]\ndatadir = \"/x\"\nsocket = \"/s\"\n", "belong together"),
        ("[instances.a]\ndatadir = \"/x\"\nroles = [\"boss\"]\n", "boss"),
        (
            "[instances.a]\ndatadir = \"/x\"\nsocket=\"/s\"\nservice = { start = [\"x\"], stop = [\"/y\"] }\n",
            "absolute",
        ),
        ("[instances.a]\ndatadir = \"/x\"\nstart_timeout = \"5\"\n", "duration"),
    ] {
        let problem = Policy::parse(Path::new("/p/host.toml"), text).unwrap_err();
        let said = problem.to_string();
        assert!(said.contains("/p/host.toml") && said.contains(word), "{said}");
    }
}

#[test]
fn a_grant_keeps_what_the_owner_wrote_and_a_revoked_one_is_gone() {
    let (_folder, path) = folder();
    let datadir = path.parent().unwrap().join("data");
    std::fs::create_dir(&datadir).unwrap();
    let grant = consent::Grant {
        instance: "copy".into(),
        datadir: Some(datadir.clone()),
        from: vec!["prod".into()],
        expires: None,
    };
    consent::grant(&path, &grant).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("# the owner's comment") && text.contains("[instances.copy.consent]"), "{text}");
    let authority = Authority::trusting(Some(path.clone()));
    authority.consent(&datadir, Some("prod")).unwrap();
    assert!(authority.consent(&datadir, Some("stage")).unwrap_err().to_string().contains("prod only"));
    assert!(consent::revoke(&path, "copy").unwrap());
    assert!(!consent::revoke(&path, "copy").unwrap());
    let gone = authority.consent(&datadir, Some("prod")).unwrap_err();
    assert!(gone.hints[0].contains("consent grant --from prod --instance copy"), "{gone:?}");
}

#[test]
fn a_protected_instance_needs_no_reason() {
    let (_folder, path) = folder();
    let datadir = path.parent().unwrap().join("data");
    std::fs::create_dir(&datadir).unwrap();
    let grant = consent::Grant {
        instance: "copy".into(),
        datadir: Some(datadir.clone()),
        from: vec!["prod".into()],
        expires: None,
    };
    consent::grant(&path, &grant).unwrap();
    edit(&path, |document| {
        document::instance_table(document, "copy")?["protected"] = toml_edit::value(true);
        Ok(())
    })
    .unwrap();
    let refused = Authority::trusting(Some(path.clone())).consent(&datadir, Some("prod")).unwrap_err();
    assert!(refused.to_string().contains("protected"), "{refused}");
    assert!(consent::grant(&path, &grant).unwrap_err().to_string().contains("protected"));
}

#[test]
fn a_trusting_agent_keeps_to_the_roles_that_the_policy_gives() {
    let (folder, path) = folder();
    let instance = strict(&path).instance(Role::Source, &Target::Named("main".into()), none).unwrap().instance;
    let described = Target::Described(Box::new(instance));
    let authority = Authority::trusting(Some(path));
    assert!(authority.instance(Role::Source, &described, none).is_ok());
    assert!(authority.instance(Role::Destination, &described, none).is_err());
    let elsewhere = Authority::trusting(Some(folder.path().join("none.toml")));
    assert!(elsewhere.instance(Role::Destination, &described, none).is_ok());
}
