//! A directory of YAML files, watched for change (placeholder until the watcher lands).
use std::path::Path;
use crate::resource::{Finding, ResourceSet, parse};
/// Resources or what is wrong with them.
pub type Loaded = Result<ResourceSet, Vec<Finding>>;
/// Watches by polling.
pub async fn watch(dir: &Path) -> std::io::Result<tokio::sync::mpsc::Receiver<Loaded>> {
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let dir = dir.to_owned();
    tokio::spawn(async move {
        let mut last = Vec::new();
        loop {
            let mut files: Vec<(String, String)> = std::fs::read_dir(&dir).into_iter().flatten().flatten()
                .filter(|e| e.path().extension().is_some_and(|x| x == "yaml" || x == "yml"))
                .filter_map(|e| Some((e.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(e.path()).ok()?))).collect();
            files.sort();
            if files != last {
                if tx.send(parse(files.iter().map(|(a, b)| (a.as_str(), b.as_str())))).await.is_err() { return }
                last = files;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    Ok(rx)
}
