//! Nothing: the tests read the files of `deploy/kubernetes` into Kubernetes' own types. Those take
//! minutes to build, so that this is apart from the plugin, whose tests don't wait for them.
#![forbid(unsafe_code)]
