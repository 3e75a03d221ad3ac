//! Names and addresses of strangers: taken or refused, never with anything that could steer a terminal or a path.
#![no_main]

use berth_iscsi::name::{Host, IscsiName, NAME_MAX_BYTES, Portal, TargetAddress};
use libfuzzer_sys::fuzz_target;

fn is_harmless(text: &str) -> bool {
    text.chars()
        .all(|c| !c.is_control() && !c.is_whitespace() && !"/\\'\"`$<>|&;*?".contains(c))
}

fuzz_target!(|text: &str| {
    if let Ok(name) = IscsiName::parse(text) {
        assert!(text.len() <= NAME_MAX_BYTES);
        assert_eq!(name.as_str(), text);
        assert!(is_harmless(name.as_str()) && is_harmless(name.normalized()));
    }
    match TargetAddress::parse(text) {
        Ok(address) => {
            assert_ne!(address.portal.port, 0);
            if let Host::Name(name) = &address.portal.host {
                assert!(is_harmless(name) && name.is_ascii());
            }
            assert_eq!(TargetAddress::parse(&address.to_string()), Ok(address));
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
    let _ = Portal::parse(text);
});
