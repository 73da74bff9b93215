# Completion of guestnet for fish, printed by `guestnet completion fish`.

function __guestnet_complete
    set -l words (commandline -opc)
    for line in ($words[1] completion words -- $words[2..-1] (commandline -ct) 2>/dev/null)
        if test "$line" = :files
            __fish_complete_path (commandline -ct)
        else
            printf '%s\n' $line
        end
    end
end

complete -c guestnet -f -a '(__guestnet_complete)'
