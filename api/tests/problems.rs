//! The problem documents as callers see them: a change here is a change of the contract.

use berth_api::{Code, Error};

#[test]
fn the_table_of_codes() {
    let table: String = Code::all()
        .map(|code| {
            format!(
                "{code:24} {} {:?}{}: {}\n",
                code.status().as_u16(),
                code.grpc(),
                if code.is_retryable() {
                    ", retryable"
                } else {
                    ""
                },
                code.title()
            )
        })
        .collect();
    insta::assert_snapshot!(table);
}

#[test]
fn a_document_with_everything() {
    let error = Error::new(
        Code::AttachedElsewhere,
        "the volume is attached to worker-2; detach it there first",
    )
    .with_attachment(&"pvc-1".parse().unwrap())
    .with_holder("worker-2")
    .with_field("source.iscsi.lun")
    .with_cause(std::io::Error::other("reservation conflict"));
    let problem = error.to_problem(Some("0123456789abcdef"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&problem).unwrap());
    assert_eq!(
        serde_json::from_value::<berth_api::Problem>(serde_json::to_value(&problem).unwrap())
            .unwrap(),
        problem
    );
}

#[test]
fn a_document_with_the_least() {
    let problem = Error::internal("disk failed").to_problem(None);
    insta::assert_snapshot!(serde_json::to_string_pretty(&problem).unwrap());
}

/// A newer daemon may know more codes.
#[test]
fn unknown_codes_are_taken() {
    let code: Code = serde_json::from_str("\"flux-capacitor\"").unwrap();
    assert_eq!(code, Code::Unknown);
    assert!(Code::all().all(|code| code != Code::Unknown));
}
