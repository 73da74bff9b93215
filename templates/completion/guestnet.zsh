#compdef guestnet
# Completion of guestnet for zsh, printed by `guestnet completion zsh`.

_guestnet() {
    local line files
    local -a said shown
    while IFS= read -r line; do
        if [[ $line == :files ]]; then
            files=1
        else
            said+=("${line%%$'\t'*}")
            shown+=("${line/$'\t'/  -- }")
        fi
    done < <("${(Q)words[1]}" completion words -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#said} )); then compadd -l -d shown -a said; fi
    if [[ -n $files ]]; then _files; fi
}

if [[ ${funcstack[1]-} == _guestnet ]]; then
    _guestnet "$@"
else
    compdef _guestnet guestnet
fi
