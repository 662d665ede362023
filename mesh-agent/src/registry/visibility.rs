//! Which namespaces see a resource (`exportTo`).

use crate::resource::Meta;

/// Namespaces that see a resource. The default is that all do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visibility {
    /// That of the resource itself.
    namespace: String,
    export_to: Vec<String>,
}

impl Visibility {
    /// By a resource's `exportTo`, which is `*` where it is empty.
    pub fn new(meta: &Meta, export_to: &[String]) -> Self {
        Self {
            namespace: meta.namespace.clone(),
            export_to: export_to.to_vec(),
        }
    }

    /// Only the resource's own namespace.
    pub fn private(meta: &Meta) -> Self {
        Self::new(meta, &[".".to_owned()])
    }

    /// Whether `namespace` sees the resource.
    pub fn includes(&self, namespace: &str) -> bool {
        self.export_to.is_empty()
            || self.export_to.iter().any(|value| match value.as_str() {
                "*" => true,
                "." => self.namespace == namespace,
                named => named == namespace,
            })
    }

    /// Whether only its own namespace sees it, as it says itself.
    pub fn is_private(&self) -> bool {
        self.export_to == ["."]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Origin;

    #[test]
    fn namespaces_see_what_is_exported_to_them() {
        let meta = Meta {
            kind: "ServiceEntry",
            name: "a".into(),
            namespace: "shop".into(),
            labels: Default::default(),
            annotations: Default::default(),
            origin: Origin {
                file: "a.yaml".into(),
                document: 1,
            },
        };
        for (export_to, seen_by) in [
            (&[][..], &["shop", "other"][..]),
            (&["*"], &["shop", "other"]),
            (&["."], &["shop"]),
            (&["other"], &["other"]),
            (&[".", "other"], &["shop", "other"]),
            (&["~"], &[]),
        ] {
            let export_to: Vec<String> = export_to.iter().map(|&text| text.to_owned()).collect();
            let visibility = Visibility::new(&meta, &export_to);
            let seen: Vec<_> = ["shop", "other"]
                .into_iter()
                .filter(|namespace| visibility.includes(namespace))
                .collect();
            assert_eq!(seen, seen_by, "{export_to:?}");
        }
    }
}
