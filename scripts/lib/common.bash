# What scripts/test, scripts/demo and .ci/run share. To be sourced from the project's root.

# build_preset NAME [TARGET…]: configures when needed and builds; prints only what went wrong.
build_preset() {
    local log=build/$1.log options=() targets=()
    [ $# -eq 1 ] || targets=(--target "${@:2}")
    [ "${CI-}" = true ] && options=(-DLUNACOS_WERROR=ON)
    mkdir -p build && : >"$log" || return 1
    if ! { cmake --preset "$1" "${options[@]}" && cmake --build "build/$1" "${targets[@]}"; } >"$log" 2>&1; then
        cat "$log" >&2
        echo "building the preset $1 failed" >&2
        return 1
    fi
}

# free_port: a port for a real server, with its neighbours (see scripts/real-nacos) free as well. All are below the range
# from which the kernel takes the ports of outgoing connections.
free_port() {
    local port near
    while port=$((12000 + RANDOM % 19000)); do
        for near in $((port - 1000)) "$port" $((port + 1000)) $((port + 1001)); do
            (exec 3<>"/dev/tcp/127.0.0.1/$near") 2>/dev/null && continue 2
        done
        echo "$port"
        return
    done
}
