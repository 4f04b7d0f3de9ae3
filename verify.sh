#!/usr/bin/env bash
# verify.sh: does this Tailrun do its job? Makes real runs through the public address and looks at what comes.
# Needs bash and curl; with kubectl it looks into the cluster too. See --help and docs/deployment.md.
set -uo pipefail
export LC_ALL=C

usage() {
    cat <<'TEXT'
Usage: verify.sh [--url URL] [--namespace NAME] [--token-file FILE] [--timeout SECONDS] [--json] [--strict]

  --url URL           where clients reach the API; else $API; else a port-forward to agent-api
  --namespace NAME    also look into this namespace with kubectl (default without a URL: agents)
  --token-file FILE   holds the token; else $TOKEN; else the Secret that agent-api has it from
  --probe HOST:PORT   a further address that no tool may reach, something that listens; may be given again: where
                      no cluster reaches the internet, only this shows that a policy keeps tools from outside
  --worker-url URL    where a worker answers /metrics; else a port-forward, where there is a namespace
  --timeout SECONDS   longest wait of one check (default 120)
  --json              print JSON instead of the table
  --strict            a finding counts as a failure

Redis is asked with redis-cli if $REDIS_URL is set, else with `tailrun redis` in the worker's pod, else
through GET /v1/queue. Exit code: 0 all passed, 1 a check failed, 2 wrong usage.
Against `make up`:  eval "$(.venv/bin/tailrun env)" && ./verify.sh
TEXT
}

wrong() {
    echo "verify.sh: $1 (see --help)" >&2
    exit 2
}

URL=${API:-} NAMESPACE='' TOKEN_FILE='' WORKER_URL='' TIMEOUT=120 JSON=no STRICT=no PROBES=''
while [ $# -gt 0 ]; do
    case $1 in
    --url | --namespace | --token-file | --worker-url | --timeout | --probe)
        [ -n "${2:-}" ] || wrong "$1 needs a value"
        case $1 in
        --url) URL=$2 ;;
        --namespace) NAMESPACE=$2 ;;
        --token-file) TOKEN_FILE=$2 ;;
        --worker-url) WORKER_URL=$2 ;;
        --timeout) TIMEOUT=$2 ;;
        --probe)
            case $2 in *[!A-Za-z0-9.:-]* | *: | :* | *:*[!0-9]*) wrong '--probe is HOST:PORT' ;; *:*) PROBES="$PROBES $2" ;; *) wrong '--probe is HOST:PORT' ;; esac
            ;;
        esac
        shift 2
        ;;
    --json) JSON=yes && shift ;;
    --strict) STRICT=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    *) wrong "unknown argument: $1" ;;
    esac
done
case $TIMEOUT in '' | *[!0-9]*) wrong '--timeout is a number of seconds' ;; esac
URL=${URL%/}
[ -n "$URL$NAMESPACE" ] || NAMESPACE=agents
WORK=$(mktemp -d) || exit 1
BODY='' STATUS='' FORWARDED='' FORWARDS='' RUNS='' RUN='' SILENT='' # of this verification: port-forwards, all its runs, the two it looks at

clean_up() {
    local each
    for each in $RUNS; do api POST "/v1/runs/$each/cancel" >/dev/null 2>&1; done
    for each in $FORWARDS; do kill "$each" 2>/dev/null && wait "$each" 2>/dev/null; done
    rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# ---- the table: each check is a function that returns 0 (ok), 1 (failed), 3 (skipped) or 4 (a finding)
# ---- and says in DETAIL what it saw

CHECKS=0 FAILURES=0 FINDINGS=0 ROWS='' DETAIL=''

now() { echo "${EPOCHREALTIME:-$(date +%s)}"; }
quoted() { printf '"%s"' "$(printf '%s' "$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' | tr '\t\r' '  ' | awk '{printf "%s%s", (NR > 1 ? "\\n" : ""), $0}')"; }

check() { # check NAME FUNCTION [NEEDED]: NEEDED is empty if what this check builds on is not there
    local began result seconds word
    began=$(now) DETAIL=''
    if [ $# -gt 2 ] && [ -z "$3" ]; then
        DETAIL='what it builds on failed'
        result=3
    else
        "$2"
        result=$?
    fi
    seconds=$(awk -v a="$began" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }')
    CHECKS=$((CHECKS + 1))
    case $result in
    0) word=ok ;;
    3) word=skipped ;;
    4) word=FINDING && FINDINGS=$((FINDINGS + 1)) ;;
    *) word=FAILED && FAILURES=$((FAILURES + 1)) ;;
    esac
    ROWS="$ROWS${ROWS:+,}{\"name\":$(quoted "$1"),\"result\":\"$(echo $word | tr '[:upper:]' '[:lower:]')\",\"seconds\":$seconds,\"detail\":$(quoted "$DETAIL")}"
    [ $JSON = yes ] || printf '%-8s %-26s %6s s  %s\n' "$word" "$1" "$seconds" "$DETAIL"
    return $result
}

fail() { DETAIL=$1 && return 1; }
skip() { DETAIL=$1 && return 3; }
finding() { DETAIL=$1 && return 4; }

wait_for() { # wait_for COMMAND…: until it succeeds, at most TIMEOUT
    local until=$((SECONDS + TIMEOUT))
    until "$@"; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.3
    done
}

# ---- asking

api() { # api METHOD PATH [BODY]: answers the body; fails at a status of 400 and more
    local method=$1 path=$2 status
    shift 2
    [ $# -eq 0 ] || set -- --data-binary "$1"
    status=$(curl -sS --max-time 60 -X "$method" -H "@$WORK/auth" -o "$WORK/answer" -w '%{http_code}' "$@" "$URL$path" 2>"$WORK/curl") ||
        { DETAIL="$method $URL$path: $(head -c 200 "$WORK/curl")" && return 1; }
    cat "$WORK/answer"
    [ "$status" -lt 400 ] || { DETAIL="$method $path: $status $(head -c 300 "$WORK/answer")" && return 1; }
}

ask() { api "$@" >"$WORK/body" && BODY=$(cat "$WORK/body"); } # not in a subshell, so that DETAIL arrives
field() { printf '%s' "$2" | grep -o "\"$1\":[^,}]*" | head -n 1 | sed -e 's/^[^:]*://' -e 's/"//g'; }
look() { ask GET "/v1/runs/$1" && STATUS=$(field status "$BODY"); }
stands_at() { look "$1" && [ "$STATUS" = "$2" ]; }
ended() { look "$1" && case $STATUS in succeeded | failed | cancelled | timed_out) ;; *) return 1 ;; esac }
taken() { look "$1" && case $STATUS in created | queued) return 1 ;; esac }
# What a run's log says last: why it waits stands there, and nowhere else.
last_words() {
    local lines
    lines=$(api GET "/v1/runs/$1/logs?format=text&limit=1000" 2>/dev/null | tail -n 4 | paste -s -d '|' - | head -c 700)
    [ -z "$lines" ] || printf '; its log says: %s' "$lines"
}
kube() { kubectl --namespace "$NAMESPACE" "$@" 2>"$WORK/kubectl"; }
said() { grep -v '^[EFIW][0-9]\{4\} ' "$WORK/kubectl" | head -c 300; } # without the lines of its own log

forward() { # forward TARGET PORT: sets FORWARDED to an address of this machine
    : >"$WORK/forward"
    kubectl --namespace "$NAMESPACE" port-forward "$1" ":$2" >"$WORK/forward" 2>"$WORK/kubectl" &
    FORWARDS="$FORWARDS $!"
    wait_for grep -q 'Forwarding from 127' "$WORK/forward" || return 1
    FORWARDED=http://127.0.0.1:$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$WORK/forward" | head -n 1)
}

redis() { # redis COMMAND…: bare values, one a line. No password stands on a command line
    local url=${REDIS_URL:-} login=''
    if [ -n "$url" ] && command -v redis-cli >/dev/null; then
        case $url in *@*) login=${url#*://} && login=${login%@*} && url=${url%%://*}://${url##*@} ;; esac
        case $login in
        ?*:*) REDISCLI_AUTH=${login#*:} redis-cli --no-auth-warning -u "$url" --user "${login%%:*}" "$@" ;;
        :*) REDISCLI_AUTH=${login#:} redis-cli --no-auth-warning -u "$url" "$@" ;;
        *) redis-cli -u "$url" "$@" ;;
        esac
    elif [ -n "$NAMESPACE" ]; then
        kube exec deployment/agent-worker -- tailrun redis --raw "$@"
    else
        return 1
    fi
}

# ---- the checks

cluster_answers() {
    command -v kubectl >/dev/null || { fail 'kubectl is not on PATH'; return; }
    case $(kubectl get --raw /openapi.json 2>/dev/null | head -c 500) in
    *'"title"'*Tailrun*) fail "kubectl has no cluster here and asks localhost:8080, which is a Tailrun. To verify that one: eval \"\$(tailrun env)\"; a cluster: set KUBECONFIG"; return ;;
    esac
    kube get deployment agent-api -o name >/dev/null || fail "no deployment agent-api in $NAMESPACE: $(said)"
}

deployments_ready() {
    local each pods
    for each in agent-api agent-worker; do
        kube rollout status "deployment/$each" --timeout="${TIMEOUT}s" >/dev/null || { fail "$each: $(said)"; return; }
    done
    DETAIL=$(kube get deployments agent-api agent-worker --no-headers | awk '{print $1, $2}' | paste -s -d ' ' -)
    pods=$(kube get pods -l app.kubernetes.io/name=tailrun --no-headers | awk '$3 !~ /Running|Completed|Terminating/ {print $1, $3}' | paste -s -d ';' -)
    [ -z "$pods" ] || fail "pods that are not running: $pods"
}

find_token() {
    local token=${TOKEN:-}
    [ -z "$TOKEN_FILE" ] || token=$(cat "$TOKEN_FILE") || { fail "$TOKEN_FILE can't be read"; return; }
    if [ -z "$token" ] && [ -n "$NAMESPACE" ]; then
        token=$(token_of_deployment)
    fi
    [ -n "$token" ] || { fail 'no token: set TOKEN, or use --token-file'; return; }
    (umask 077 && printf 'Authorization: Bearer %s\n' "$token" >"$WORK/auth")
}

token_of_deployment() { # its Secret, as a variable of its own or among those that are taken in whole
    local secret key
    read -r secret key < <(kube get deployment agent-api -o 'jsonpath={range .spec.template.spec.containers[0].env[?(@.name=="API_TOKEN")].valueFrom.secretKeyRef}{.name} {.key}{"\n"}{end}') || return 1
    kube get secret "$secret" -o "jsonpath={.data.$key}" | base64 -d
}

api_answers() {
    if [ -z "$URL" ]; then
        forward service/agent-api http || { fail "no port-forward to agent-api: $(said)"; return; }
        URL=$FORWARDED
    fi
    wait_for answers_healthz || return 1
    ask GET '/v1/runs?limit=1' || return 1
    ADDRESS=$URL DETAIL=$URL
}
answers_healthz() { ask GET /healthz; }

# Public addresses often hide /readyz and /metrics: then they are asked from inside.
inside() { # inside PATH
    ask GET "$1" && return
    [ -n "$NAMESPACE" ] && [ "$(curl -s -o /dev/null -w '%{http_code}' "$URL$1")" = 404 ] || return 1
    forward service/agent-api http && BODY=$(curl -fsS --max-time 60 "$FORWARDED$1" 2>"$WORK/curl") && DETAIL=''
}

api_ready() { inside /readyz && DETAIL=$(printf '%s' "$BODY" | head -c 200); }

workers_alive() {
    ask GET /v1/queue || { case $DETAIL in *' 403 '*) skip "the token is not an admin's" ;; *) return 1 ;; esac; return; }
    local alive
    alive=$(printf '%s' "$BODY" | grep -o '"lease_left_s":[0-9]' | wc -l)
    [ "$alive" -gt 0 ] || { fail "no worker is alive: $BODY"; return; }
    DETAIL="$((alive)) alive; $(field depth "$BODY") waiting, $(field in_flight "$BODY") in flight, $(field dead "$BODY") dead"
}

# shellcheck disable=SC2016 # the program expands it
COMMAND='test "$(cat in.txt)" = "given before" && for n in 1 2 3 4 5 6; do echo "line $n"; sleep 1; done; echo "written by a run" > out.txt'

create_run() {
    local steps
    steps="[{\"tool\":\"file_write\",\"args\":{\"path\":\"made.txt\",\"content\":\"made\"}},{\"tool\":\"shell\",\"args\":{\"command\":$(quoted "$COMMAND")}}]"
    ask POST /agent/execute "{\"action\":\"create\",\"prompt\":$(quoted "\`\`\`json
$steps
\`\`\`"),\"labels\":{\"from\":\"verify.sh\"}}" || return 1
    local made
    made=$(field run_id "$BODY") RUNS="$RUNS $made"
    [ "$(field status "$BODY")" = created ] || { fail "expected created: $BODY"; return; }
    ask PUT "/v1/runs/$made/files/in.txt" 'given before' || return 1
    RUN=$made DETAIL="run $RUN is held, with a file"
}

start_run() {
    ask POST /agent/execute "{\"action\":\"start\",\"run_id\":\"$RUN\"}" || return 1
    STARTED=$(field status "$BODY")
    case $STARTED in queued | running) DETAIL=$STARTED ;; *) fail "expected queued: $BODY" ;; esac
}

silent_run() { # one that lasts, for the looks that take their time
    ask POST /v1/runs '{"argv":["sleep","600"],"labels":{"from":"verify.sh"}}' || return 1
    SILENT=$(field run_id "$BODY") RUNS="$RUNS $SILENT"
    DETAIL="run $SILENT"
}

seen_in_redis() {
    local until=$((SECONDS + 5)) key
    if ! redis PING >/dev/null 2>&1; then
        ask GET /v1/queue || { skip 'Redis is not reachable from here, and the token is not an admin'"'"'s'; return; }
        [ "$(($(field depth "$BODY") + $(field in_flight "$BODY")))" -gt 0 ] || { fail "in neither list: $BODY"; return; }
        DETAIL="GET /v1/queue: $(field depth "$BODY") waiting, $(field in_flight "$BODY") in flight"
        return
    fi
    while [ $SECONDS -le $until ]; do # twice, for it may move between two looks
        for key in jobs:pending $(redis ZRANGE jobs:workers 0 -1 | sed 's/^/jobs:processing:/'); do
            case $(redis LRANGE "$key" 0 -1) in *"$SILENT"*) DETAIL="its entry stands in $key" && return ;; esac
        done
    done
    fail "no entry of $SILENT in jobs:pending or jobs:processing:* (another Redis, or REDIS_PREFIX?)"
}

taken_by_worker() {
    wait_for taken "$SILENT" || { fail "no worker took it in $TIMEOUT s; it is $STATUS$(last_words "$SILENT")"; return; }
    [ "$STATUS" = running ] || { fail "it $STATUS: $(field message "$BODY")$(last_words "$SILENT")"; return; }
    DETAIL="$STATUS, attempt $(field attempt "$BODY")"
}

tailed_live() {
    local line expected=0 during='' lines=0 end=''
    while IFS= read -r line; do
        line=${line%$'\r'}
        case $line in
        id:*)
            expected=$((expected + 1))
            [ "${line#id: }" = $expected ] || { fail "seq ${line#id: } came where $expected was due"; return; }
            ;;
        data:*'"type":"gap"'*) fail "lines are lost: $line"; return ;;
        data:*'"content":"line '[0-9]'"'*)
            [ $lines -gt 0 ] || { look "$RUN" && during=$STATUS; }
            lines=$((lines + 1))
            ;;
        data:*'"type":"end"'*) end=$(field status "$line") ;;
        esac
    done < <(curl -sSN --max-time "$((TIMEOUT + 30))" -H "@$WORK/auth" "$URL/agent/logs/$RUN/stream" 2>"$WORK/curl")
    [ -n "$end" ] || { fail "the stream ended after seq $expected without an end: $(cat "$WORK/curl")$(last_words "$RUN")"; return; }
    [ "$end" = succeeded ] || { fail "the run $end: $(field message "$(api GET "/v1/runs/$RUN")")$(last_words "$RUN")"; return; }
    [ $lines = 6 ] || { fail "$lines of 6 lines came"; return; }
    [ "$during" = running ] || { fail "the first line came when the run was over ($during): something on the way holds streams back"; return; }
    DETAIL="6 lines while it ran, seq 1 to $expected whole"
}

files_through() {
    local made out
    ask GET "/v1/runs/$RUN/files/made.txt" || return 1
    made=$BODY
    ask GET "/v1/runs/$RUN/files/out.txt" || return 1
    out=$BODY
    [ "$made/$out" = 'made/written by a run' ] || { fail "expected other contents than '$made' and '$out'"; return; }
    DETAIL='one from a tool, one from a program, one given before'
}

PROBE='import socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(target):
    name, host, port = target.split(",")
    try:
        socket.create_connection((host, int(port)), 3).close()
    except OSError:
        return f"closed {name}"
    return f"open {name}"
print("host", socket.gethostname())
with socket.create_server(("127.0.0.1", 0)) as own, ThreadPoolExecutor(16) as threads:
    itself = f"itself,127.0.0.1,{own.getsockname()[1]}"
    print(*threads.map(reached, [itself, *sys.argv[1:]]), sep="\n")'

network_closed() { # a program that only connects; who refuses or keeps silent is closed
    local targets='"metadata,169.254.169.254,80"' address lines open each
    for each in 1.1.1.1 8.8.8.8 9.9.9.9; do targets="$targets,\"internet $each:443,$each,443\",\"internet $each:80,$each,80\""; done
    for each in $PROBES; do targets="$targets,$(quoted "$each,${each%:*},${each##*:}")"; done
    if [ -n "$NAMESPACE" ]; then
        address=$(kubectl get service kubernetes --namespace default -o 'jsonpath={.spec.clusterIP}' 2>/dev/null)
        [ -z "$address" ] || targets="$targets,\"API server,$address,443\""
        for each in worker:9090 api:8080 redis:6379 postgresql:5432; do
            address=$(kube get pods -l "app.kubernetes.io/name=tailrun,app.kubernetes.io/component=${each%:*}" -o 'jsonpath={.items[0].status.podIP}' 2>/dev/null)
            [ -z "$address" ] || targets="$targets,\"${each%:*} ($each),$address,${each##*:}\""
        done
        address=$(kube get service agent-api -o 'jsonpath={.spec.clusterIP},{.spec.ports[0].port}' 2>/dev/null)
        [ -z "$address" ] || targets="$targets,\"service agent-api,$address\""
    fi
    ask POST /v1/runs "{\"steps\":[{\"tool\":\"code\",\"args\":{\"language\":\"python\",\"source\":$(quoted "$PROBE"),\"args\":[$targets]}}],\"labels\":{\"from\":\"verify.sh\"}}" || return 1
    local probe
    probe=$(field run_id "$BODY") RUNS="$RUNS $probe"
    wait_for ended "$probe" || { fail "the probe did not end in $TIMEOUT s: $probe$(last_words "$probe")"; return; }
    [ "$STATUS" = succeeded ] || { fail "the probe $STATUS: $(field message "$BODY")$(last_words "$probe")"; return; }
    lines=$(api GET "/v1/runs/$probe/logs?format=text&stream=stdout")
    case $lines in
    *'host tool-'*) ;;
    *) skip 'tools are programs of the worker (TOOL_EXECUTOR=local): its network is theirs'; return ;;
    esac
    case $lines in
    *'open itself'*) ;;
    *) fail 'the probe did not reach a port of its own, so it would find nothing open'; return ;;
    esac
    open=$(printf '%s\n' "$lines" | grep -v '^open itself$' | sed -n 's/^open //p' | paste -s -d ',' -)
    [ -z "$open" ] || { finding "a tool's pod reaches: $open. Does the CNI know NetworkPolicy? docs/troubleshooting.md"; return; }
    DETAIL="a Job ran; closed to $(printf '%s\n' "$lines" | sed -n 's/^closed //p' | paste -s -d ',' -)"
}

cancelled() {
    ask POST "/v1/runs/$SILENT/cancel" || return 1
    wait_for ended "$SILENT" || { fail "still $STATUS $TIMEOUT s after the cancel$(last_words "$SILENT")"; return; }
    stands_at "$SILENT" cancelled || { fail "it is $STATUS"; return; }
    DETAIL='a silent program was stopped'
}

api_metrics() {
    inside /metrics || return 1
    case $BODY in *tailrun_queue_depth*) ;; *) fail 'no tailrun_queue_depth in it'; return ;; esac
    DETAIL="$(printf '%s\n' "$BODY" | grep -c '^tailrun_') series"
}

worker_metrics() {
    if [ -z "$WORKER_URL" ]; then
        [ -n "$NAMESPACE" ] || { skip 'no --worker-url'; return; }
        forward deployment/agent-worker 9090 || { fail "no port-forward: $(said)"; return; }
        WORKER_URL=$FORWARDED
    fi
    BODY=$(curl -fsS --max-time 60 "$WORKER_URL/metrics" 2>"$WORK/curl") || { fail "$(cat "$WORK/curl")"; return; }
    case $BODY in *tailrun_worker_slots_busy*) ;; *) fail 'no tailrun_worker_slots_busy in it'; return ;; esac
    DETAIL="$(printf '%s\n' "$BODY" | grep -c '^tailrun_') series"
}

command -v curl >/dev/null || wrong 'curl is not on PATH'
BEGAN=$SECONDS ADDRESS='' STARTED=''
if [ -n "$NAMESPACE" ]; then
    check 'cluster answers' cluster_answers && check 'deployments and pods' deployments_ready
fi
check 'token' find_token && check 'API answers' api_answers
check 'API ready' api_ready "$ADDRESS"
check 'workers alive' workers_alive "$ADDRESS"
check 'create' create_run "$ADDRESS"
check 'start' start_run "$RUN"
check 'tailed while it runs' tailed_live "$STARTED"
check 'files of the workspace' files_through "$STARTED"
check 'submit' silent_run "$ADDRESS"
check 'enqueued in Redis' seen_in_redis "$SILENT"
check 'taken by a worker' taken_by_worker "$SILENT"
check 'cancel' cancelled "$SILENT"
check "a tool's network" network_closed "$ADDRESS"
check "the API's metrics" api_metrics "$ADDRESS"
check "a worker's metrics" worker_metrics "$ADDRESS"

[ $STRICT = no ] || FAILURES=$((FAILURES + FINDINGS))
OK=$([ $FAILURES = 0 ] && echo true || echo false)
if [ $JSON = yes ]; then
    printf '{"url":%s,"namespace":%s,"ok":%s,"seconds":%d,"checks":[%s]}\n' "$(quoted "$URL")" "$(quoted "$NAMESPACE")" "$OK" $((SECONDS - BEGAN)) "$ROWS"
else
    printf '%s checks in %s s: %s failed, %s findings\n' $CHECKS $((SECONDS - BEGAN)) $FAILURES $FINDINGS
fi
[ $FAILURES = 0 ]
