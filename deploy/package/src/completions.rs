//! Completions for shells: the output of clap_complete, plus the existing services after `--name`.
//!
//! clap_complete has no values that only a running program knows. Where it writes that it has none
//! for a SERVICE, this module puts a shell function that asks `bindonce services`, with the
//! `--socket` of the command line.

use anyhow::ensure;
use clap::Command;
use clap_complete::{Generator, Shell, generate};

/// For bash, where words are those of the command line so far.
const BASH: &str = r#"
_bindonce_services() {
    local socket=() i
    for ((i = 1; i + 1 < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == --socket ]]; then socket=(--socket "${COMP_WORDS[i + 1]}"); fi
    done
    bindonce "${socket[@]}" services 2>/dev/null
}
"#;

/// For zsh, where `words` begins at the subcommand by then.
const ZSH: &str = r#"
_bindonce_services() {
    local -a typed socket services
    typed=(${(z)LBUFFER})
    local at=${typed[(I)--socket]}
    if ((at)); then socket=(--socket ${(Q)typed[at + 1]}); fi
    services=(${(f)"$(bindonce $socket services 2>/dev/null)"})
    compadd -a services
}
"#;

const FISH: &str = r#"
function __fish_bindonce_services
    set -l words (commandline -opc)
    set -l socket
    if set -l at (contains -i -- --socket $words)
        set socket --socket $words[(math $at + 1)]
    end
    command bindonce $socket services 2>/dev/null
end
"#;

/// Returns the file name and the text of a shell's completion.
pub(crate) fn completion(shell: Shell, command: &Command) -> anyhow::Result<(String, String)> {
    let mut command = without_hidden(command);
    let file = shell.file_name("bindonce");
    let mut text = Vec::new();
    generate(shell, &mut command, "bindonce", &mut text);
    let text = String::from_utf8(text)?;
    let (text, replaced) = match shell {
        Shell::Bash => {
            let none = "--name)\n                    COMPREPLY=($(compgen -f \"${cur}\"))";
            let services = "--name)\n                    \
                            COMPREPLY=($(compgen -W \"$(_bindonce_services)\" -- \"${cur}\"))";
            (format!("{}{BASH}", text.replace(none, services)), text.matches(none).count())
        }
        Shell::Zsh => {
            let (none, services) = (":SERVICE:_default'", ":SERVICE:_bindonce_services'");
            // The last lines call `_bindonce`: the function that it needs comes before them.
            let body = text.replace(none, services);
            let body = body.replacen("\n_bindonce() {", &format!("{ZSH}\n_bindonce() {{"), 1);
            (body, text.matches(none).count())
        }
        Shell::Fish => {
            let offered = |line: &str| match line.contains(" -l name -d ") && line.ends_with(" -r")
            {
                true => format!("{line} -f -a \"(__fish_bindonce_services)\"\n"),
                false => format!("{line}\n"),
            };
            let body: String = text.lines().map(offered).collect();
            let count = body.matches("(__fish_bindonce_services)").count();
            (format!("{body}{FISH}"), count)
        }
        other => anyhow::bail!("nothing is known of {other}"),
    };
    let wanted = takers(&command);
    ensure!(
        replaced == wanted,
        "the completion for {shell} asks for services in {replaced} places, and {wanted} commands take one"
    );
    Ok((file, text))
}

/// Number of commands with `--name SERVICE`.
fn takers(command: &Command) -> usize {
    let takes =
        |command: &&Command| command.get_arguments().any(|one| one.get_long() == Some("name"));
    command.get_subcommands().filter(takes).count()
}

/// The command without its hidden subcommands.
fn without_hidden(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|one| !one.is_hide_set()).cloned();
    let bare = Command::new("bindonce").disable_help_subcommand(true);
    let bare = command.get_arguments().cloned().fold(bare, Command::arg);
    bare.version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_asks_for_services_and_knows_nothing_hidden() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let (_, text) = completion(shell, &bindonce_cli::command()).expect("a completion");
            assert!(text.contains("bindonce_services"), "{shell}");
            assert!(!text.contains("names of the services that have"), "{shell}: {text}");
        }
    }
}
