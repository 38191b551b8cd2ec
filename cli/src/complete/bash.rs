//! Bash breaks words at colons, which addresses are full of.

use std::{ffi::OsString, io, path::Path};

use clap_complete::env::{self, EnvCompleter};

/// As the library's, with words that were broken at a colon put together again.
#[derive(Debug)]
pub(super) struct Bash;

const SCRIPT: &str = r#"_NAME() {
    local IFS=$'\013' words=() word last i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word="${COMP_WORDS[i]}"
        last=$((${#words[@]} - 1))
        if ((last > 0)) && [[ "$word" == :* || "${words[last]}" == *: ]]; then
            words[last]+="$word"
        else
            words+=("$word")
        fi
    done
    last=$((${#words[@]} - 1))
    COMPREPLY=($(_CLAP_IFS="$IFS" _CLAP_COMPLETE_INDEX="$last" VARIABLE=bash \
        COMPLETER -- "${words[@]}")) || { COMPREPLY=(); return; }
    if [[ "$COMP_WORDBREAKS" == *:* && "${words[last]}" == *:* ]]; then
        word="${words[last]%"${words[last]##*:}"}"
        COMPREPLY=("${COMPREPLY[@]#"$word"}")
    fi
    [[ ${#COMPREPLY[@]} != 1 || "${COMPREPLY[0]}" != *[=/:] ]] || compopt -o nospace
}
complete -o bashdefault -F _NAME BIN
"#;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        env::Bash.name()
    }

    fn is(&self, name: &str) -> bool {
        env::Bash.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn io::Write,
    ) -> Result<(), io::Error> {
        let script = SCRIPT
            .replace("NAME", name)
            .replace("BIN", bin)
            .replace("COMPLETER", completer)
            .replace("VARIABLE", var);
        buf.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        cmd: &mut clap::Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn io::Write,
    ) -> Result<(), io::Error> {
        env::Bash.write_complete(cmd, args, current_dir, buf)
    }
}
