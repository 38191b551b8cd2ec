//! What is shown: proto messages made from a snapshot.
