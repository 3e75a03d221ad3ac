//! Makes the types of CSI and of kubelet's plugin registration from `proto/`. No protoc is needed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use prost_types::DescriptorProto;

/// Fields whose values are shown to nobody: credentials, and mount flags, which may hold some.
const SECRET_FIELDS: [&str; 2] = ["secrets", "mount_flags"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["csi.proto", "registration.proto"], ["proto"])?;
    let mut masked = Masked::default();
    for file in &files.file {
        let package = file.package();
        if package.starts_with("google") {
            continue;
        }
        for message in &file.message_type {
            masked.visit(&format!(".{package}"), "", message);
        }
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("masked.rs"), &masked.code)?;
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(masked.messages)
        .compile_fds(files)?;
    Ok(())
}

/// Messages with such fields, and a `Debug` for each that leaves the values out.
#[derive(Default)]
struct Masked {
    messages: BTreeSet<String>,
    code: String,
}

impl Masked {
    fn visit(&mut self, scope: &str, module: &str, message: &DescriptorProto) {
        let name = message.name();
        let path = format!("{scope}.{name}");
        let secret = |field: &str| SECRET_FIELDS.contains(&field);
        if message.field.iter().any(|field| secret(field.name())) {
            let mut fields = String::new();
            for field in message.field.iter().map(|field| field.name()) {
                let value = if secret(field) {
                    format!("format_args!(\"{{}} hidden\", self.{field}.len())")
                } else {
                    format!("self.{field}")
                };
                write!(fields, "\n            .field(\"{field}\", &{value})").expect("memory");
            }
            write!(
                self.code,
                "impl std::fmt::Debug for {module}{name} {{\n    \
                 fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{\n        \
                 f.debug_struct(\"{name}\"){fields}\n            .finish()\n    }}\n}}\n"
            )
            .expect("memory");
            self.messages.insert(path.clone());
        }
        let module = format!("{module}{}::", snake(name));
        for nested in &message.nested_type {
            self.visit(&path, &module, nested);
        }
    }
}

/// The module that nested messages are generated into.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
