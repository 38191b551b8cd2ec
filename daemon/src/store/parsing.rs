//! Taking records apart while the next ones are read.

use std::sync::mpsc;

use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::StoreError;

/// The records of one table, taken apart on a thread of their own.
#[derive(Debug)]
pub(super) struct Parsing<T> {
    texts: mpsc::Sender<String>,
    task: JoinHandle<Result<Vec<T>, StoreError>>,
}

impl<T: DeserializeOwned + Send + 'static> Parsing<T> {
    /// Begins. Must be called within a tokio runtime.
    pub(super) fn start(table: &'static str) -> Self {
        let (texts, received) = mpsc::channel::<String>();
        let task = tokio::task::spawn_blocking(move || {
            let mut records = Vec::new();
            for text in received {
                // Line by line: a record of nothing must not be passed over.
                for line in text.split('\n') {
                    records.push(serde_json::from_str(line).map_err(|error| row(table, &error))?);
                }
            }
            Ok(records)
        });
        Self { texts, task }
    }

    /// Takes more: JSON values, one in a line.
    pub(super) fn push(&self, text: String) {
        // Where an earlier text could not be understood nobody listens any more: `end` says it.
        let _ = self.texts.send(text);
    }

    /// All of them, in the order in which they came.
    ///
    /// # Errors
    /// What can't be understood.
    pub(super) async fn end(self) -> Result<Vec<T>, StoreError> {
        drop(self.texts);
        self.task.await.unwrap_or_else(|error| {
            Err(StoreError::Row { table: "records", message: error.to_string() })
        })
    }
}

/// The error of a row that isn't what it should be.
pub(super) fn row(table: &'static str, error: &serde_json::Error) -> StoreError {
    StoreError::Row { table, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn texts_are_taken_apart_in_order() {
        let parsing = Parsing::<(String, u8)>::start("test");
        parsing.push("[\"a\",1]\n[\"b\",2]".to_owned());
        parsing.push("[\"c\",3]".to_owned());
        let all = parsing.end().await.unwrap();
        let expected = [("a", 1), ("b", 2), ("c", 3)];
        assert!(all.iter().map(|(name, number)| (name.as_str(), *number)).eq(expected));
    }

    #[tokio::test]
    async fn what_can_not_be_understood_is_said_with_its_table() {
        for bad in [
            "",
            "[1",
            "{}",
            "[\"a\"]",
            "[\"a\",1],[\"b\",2]",
            "[\"a\",1] x",
            "[\"a\",1]\n\n[\"b\",2]",
        ] {
            let parsing = Parsing::<(String, u8)>::start("groups");
            parsing.push(bad.to_owned());
            parsing.push("[\"b\",2]".to_owned());
            let error = parsing.end().await.unwrap_err();
            assert!(error.to_string().starts_with("row of groups"), "{bad}: {error}");
        }
    }
}
