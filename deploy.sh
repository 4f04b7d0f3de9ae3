#!/usr/bin/env bash
# deploy.sh: brings Tailrun into a cluster, changes it, takes it back. The same command again changes nothing.
# Needs bash, kubectl and (with --helm) helm. See --help and docs/deployment.md.
set -uo pipefail
export LC_ALL=C
ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'TEXT'
Usage: deploy.sh [what to do] [options]

What to do (default: install, or upgrade what is there)
  --dry-run              check tools, rights and settings, let the server check the objects, change nothing
  --rollback             back to the release before
  --in-process           stop the workers and let the API supervise one (api --with-worker)
  --out-of-process       back to workers of their own
  --uninstall            remove everything but data: volumes, secrets and the namespaces stay
  --uninstall --purge-data   these too

Options
  --overlay dev|prod     dev (default): with Redis, PostgreSQL and S3 for trying out; prod: yours
  --helm                 with the chart instead of kustomize; --values FILE adds values
  --namespace NAME       default agents; tools run in NAME-tools
  --image NAME:TAG       the application's image; --tool-image NAME:TAG that of tools (default: NAME-toolbox:TAG)
  --secrets FILE         lines of NAME=value; else the environment. They go into the Secret tailrun-credentials:
                         DATABASE_URL REDIS_URL S3_ACCESS_KEY S3_SECRET_KEY PROJECTS_KEY …
                         API_TOKEN goes into tailrun-api-token, which workers do not get
  --timeout SECONDS      longest wait for one roll-out (default 300)
  --build                make both images first, with docker or buildah, and then one of
    --push REGISTRY      push them there
    --load kind|containerd   put them into the nodes of kind, or into this machine's containerd
TEXT
}

say() { printf '%s\n' "$*" >&2; }
die() { say "deploy.sh: $1" && exit "${2:-1}"; }

ACTION=install OVERLAY=dev HELM=no NAMESPACE=agents IMAGE='' TOOL_IMAGE='' SECRETS='' VALUES='' TIMEOUT=300
BUILD=no PUSH='' LOAD='' PURGE=no
while [ $# -gt 0 ]; do
    case $1 in
    --overlay | --namespace | --image | --tool-image | --secrets | --values | --timeout | --push | --load)
        [ -n "${2:-}" ] || die "$1 needs a value (see --help)" 2
        case $1 in
        --overlay) OVERLAY=$2 ;;
        --namespace) NAMESPACE=$2 ;;
        --image) IMAGE=$2 ;;
        --tool-image) TOOL_IMAGE=$2 ;;
        --secrets) SECRETS=$2 ;;
        --values) VALUES=$2 ;;
        --timeout) TIMEOUT=$2 ;;
        --push) PUSH=$2 ;;
        --load) LOAD=$2 ;;
        esac
        shift 2
        ;;
    --dry-run | --rollback | --in-process | --out-of-process | --uninstall) ACTION=${1#--} && shift ;;
    --purge-data) PURGE=yes && shift ;;
    --helm) HELM=yes && shift ;;
    --build) BUILD=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    *) die "unknown argument: $1 (see --help)" 2 ;;
    esac
done
case $OVERLAY in dev | prod) ;; *) die '--overlay is dev or prod' 2 ;; esac
case $LOAD in '' | kind | containerd) ;; *) die '--load is kind or containerd' 2 ;; esac
case $TIMEOUT in *[!0-9]*) die '--timeout is a number of seconds' 2 ;; esac
case $NAMESPACE in *[!a-z0-9-]* | -* | *-) die '--namespace: small letters, digits and -' 2 ;; esac
[ ${#NAMESPACE} -le 45 ] || die '--namespace: at most 45 characters, for names are made of it' 2
for each in "$IMAGE" "$TOOL_IMAGE"; do
    case $each in *[!A-Za-z0-9._/:@-]* | [!A-Za-z0-9]*) [ -z "$each" ] || die "$each is no image's name" 2 ;; esac
done
[ -z "$SECRETS" ] || [ -r "$SECRETS" ] || die "$SECRETS can't be read" 2
[ $PURGE = no ] || [ "$ACTION" = uninstall ] || die '--purge-data goes with --uninstall' 2
TOOLS=$NAMESPACE-tools
SECRET=tailrun-credentials TOKEN_SECRET=tailrun-api-token
NAMES='DATABASE_URL REDIS_URL REDIS_SENTINEL_USERNAME REDIS_SENTINEL_PASSWORD UPSTASH_REDIS_REST_URL
UPSTASH_REDIS_REST_TOKEN S3_ACCESS_KEY S3_SECRET_KEY PROJECTS_KEY PROJECTS_TOKEN WEBHOOK_SECRET
LLM_KEY LLM_PROXY'
WORKERS_OWN='PROJECTS_TOKEN LLM_KEY LLM_PROXY' # secrets that the API has only while it works on runs itself
WORK=$(umask 077 && mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT

kube() { kubectl --namespace "$NAMESPACE" "$@"; }
exists() { kube get "$@" >/dev/null 2>&1; }

# ---- images

VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/pyproject.toml")

builder() {
    if command -v docker >/dev/null && docker version >/dev/null 2>&1; then echo docker; else command -v buildah >/dev/null && echo buildah; fi
}

build_images() {
    local with target each
    with=$(builder) && [ -n "$with" ] || die 'neither docker (with its daemon) nor buildah is here: install one, or give --image'
    IMAGE=${IMAGE:-${PUSH:+${PUSH%/}/}tailrun:$VERSION} TOOL_IMAGE=${TOOL_IMAGE:-$(toolbox_of "$IMAGE")}
    for target in app toolbox; do
        each=$IMAGE
        [ $target = app ] || each=$TOOL_IMAGE
        say "Building $each …"
        (cd "$ROOT" && sh scripts/build_image.sh "$each" $target) >"$WORK/build" 2>&1 ||
            { tail -n 30 "$WORK/build" >&2 && die "building $each failed"; }
        [ -z "$PUSH" ] || "$with" push "$each" >&2 || die "pushing $each failed: is $with logged in to $PUSH?"
        [ -z "$LOAD" ] || load_image "$with" "$each" || die "loading $each into $LOAD failed"
    done
}

load_image() { # load_image BUILDER IMAGE
    local archive=$WORK/image.tar
    rm -f "$archive"
    if [ "$1" = docker ]; then docker save -o "$archive" "$2"; else buildah push -q "$2" "docker-archive:$archive:$2"; fi || return
    if [ "$LOAD" = kind ]; then kind load image-archive "$archive" >&2; else ctr --namespace k8s.io images import "$archive" >&2; fi
}

toolbox_of() { # registry:5000/team/tailrun:1 → registry:5000/team/tailrun-toolbox:1
    case ${1##*/} in *:*) echo "${1%:*}-toolbox:${1##*:}" ;; *) echo "$1-toolbox" ;; esac
}

tagged() { case ${1##*/} in *[:@]*) echo "$1" ;; *) echo "$1:latest" ;; esac } # as every container engine reads it

repository_of() { # registry:5000/team/tailrun:1 → registry:5000/team/tailrun
    case ${1##*/} in *:*) echo "${1%:*}" ;; *) echo "$1" ;; esac
}

# ---- before anything changes

check_tools() {
    command -v kubectl >/dev/null || die 'kubectl is not on PATH'
    [ $HELM = no ] || command -v helm >/dev/null || die 'helm is not on PATH (or leave --helm out: kustomize is in kubectl)'
    kubectl get --raw /version >"$WORK/out" 2>&1 && return
    # Without a kubeconfig kubectl asks localhost:8080, where `make up` serves.
    case $(kubectl get --raw /openapi.json 2>/dev/null | head -c 500) in
    *'"title"'*Tailrun*) die 'kubectl has no cluster here and asks localhost:8080, which is a Tailrun (make up?): set KUBECONFIG, or choose one with kubectl config use-context' ;;
    esac
    die "the cluster does not answer: $(grep -v '^[EFIW][0-9]\{4\} ' "$WORK/out" | head -c 300)"
}

may() { # may NAMESPACE VERB RESOURCE…
    local namespace=$1 verb=$2 each
    shift 2
    for each in "$@"; do
        kubectl auth can-i "$verb" "$each" --namespace "$namespace" >/dev/null 2>&1 || MISSING="$MISSING
  $verb $each in $namespace"
    done
}

check_rights() {
    MISSING=''
    may "$NAMESPACE" create deployments.apps services secrets configmaps serviceaccounts networkpolicies.networking.k8s.io poddisruptionbudgets.policy
    may "$TOOLS" create roles.rbac.authorization.k8s.io rolebindings.rbac.authorization.k8s.io resourcequotas limitranges networkpolicies.networking.k8s.io
    if ! exists namespace "$NAMESPACE" || ! exists namespace "$TOOLS"; then may "$NAMESPACE" create namespaces; fi
    may "$NAMESPACE" create priorityclasses.scheduling.k8s.io validatingadmissionpolicies.admissionregistration.k8s.io
    [ -z "$MISSING" ] || die "these rights are missing here, ask the cluster's administrator:$MISSING"
}

# The value of one secret, from the file or the environment; nothing if it has none.
given() {
    if [ -n "$SECRETS" ]; then sed -n "s/^$1=//p" "$SECRETS" | tail -n 1; else printf '%s' "${!1:-}"; fi
}

# known SECRET: names of the keys in a Secret that is there already.
# shellcheck disable=SC2016 # kubectl expands it
known() { kube get secret "$1" -o 'go-template={{range $name, $value := .data}}{{$name}} {{end}}' 2>/dev/null; }
has() { [ -n "$(given "$1")" ] || case " $KNOWN " in *" $1 "*) ;; *) return 1 ;; esac }

check_settings() {
    local each missing=''
    KNOWN=$(known "$SECRET")
    [ -z "$SECRETS" ] || ! grep -vqE '^(#.*|[A-Z0-9_]+=.*)?$' "$SECRETS" || die "$SECRETS: every line is NAME=value, bare, without quotes"
    if [ "$OVERLAY" = prod ]; then
        for each in DATABASE_URL REDIS_URL S3_ACCESS_KEY S3_SECRET_KEY; do has "$each" || missing="$missing $each"; done
        [ -z "$missing" ] || die "these have no value, in the environment, in --secrets or in the Secret $SECRET:$missing"
        if [ $HELM = yes ] && [ -z "$VALUES" ] && grep -q 's3\.example' "$ROOT/k8s/overlays/prod/values.yaml"; then
            say 'Warning: k8s/overlays/prod/values.yaml has the names of an example: give yours with --values FILE.'
        fi
        if [ $HELM = no ] && grep -q '203\.0\.113\.0/24' "$ROOT/k8s/overlays/prod/s3-ranges.yaml"; then
            say 'Warning: k8s/overlays/prod/s3-ranges.yaml has the addresses of an example, so tools will not reach your S3 store: put its own there.'
        fi
        if [ -z "$IMAGE" ] && grep -q 'registry\.example' "$ROOT/k8s/overlays/prod/kustomization.yaml"; then
            die 'which image? Give --image, or --build with --push'
        fi
    fi
    case $(given DATABASE_URL) in '' | postgresql://* | postgres://*) ;; *) die 'DATABASE_URL is postgresql://… in a cluster: its pods share no SQLite file' ;; esac
    case $(given REDIS_URL) in '' | redis://* | rediss://* | redis+sentinel://* | rediss+sentinel://*) ;; *) die 'REDIS_URL is none of the forms of docs/configuration.md' ;; esac
}

# ---- objects

allowed_for() { # the policy's expression for every version of an image, inside of a string of CEL
    case $1 in *@*) set -- "${1%%@*}" @sha256 ;; *) set -- "$(repository_of "$1")" '' ;; esac
    printf '%s%s:[A-Za-z0-9_.:@-]*' "$(printf '%s' "$1" | sed 's/\./\\\\./g')" "$2"
}

# The overlay, with our names in it. What is generated from settings gets another name when they change.
render() {
    local app tools
    kubectl kustomize "$ROOT/k8s/overlays/$OVERLAY" >"$WORK/plain.yaml" 2>"$WORK/out" || die "kustomize: $(cat "$WORK/out")"
    app=$(sed -nE 's/^ *image: (([^ ]*\/)?tailrun[:@][^ ]*)$/\1/p' "$WORK/plain.yaml" | head -n 1)
    tools=$(sed -n 's/^ *TOOL_IMAGE: //p' "$WORK/plain.yaml" | head -n 1)
    [ -n "$app" ] && [ -n "$tools" ] || die 'the overlay names no image and no TOOL_IMAGE'
    APP=$app NEW_APP=$IMAGE NEW_TOOLS=$TOOL_IMAGE NAMESPACE=$NAMESPACE \
        ALLOWED=$(allowed_for "$tools") NEW_ALLOWED=$(allowed_for "${TOOL_IMAGE:-$tools}") \
        SUFFIX=-$(printf '%s' "$TOOL_IMAGE" | cksum | cut -d ' ' -f 1) \
        awk "$RENAME" "$WORK/plain.yaml" >"$WORK/all.yaml" || die 'the overlay could not be read'
}

# Whole values of the keys that name an image or a namespace are replaced, as kustomize writes them: one key a
# line. Nothing is replaced inside of a value, whatever the namespace is called and the images' paths hold.
# shellcheck disable=SC2016 # awk's
RENAME='
BEGIN {
    old = "agents"
    new = ENVIRON["NAMESPACE"]
    split("namespace name kubernetes.io/metadata.name priorityClassName policyName TOOL_NAMESPACE", keys, " ")
    for (each in keys) names_it[keys[each]] = 1
    split("% %-tools tailrun-% tailrun-%-tool-images-jobs tailrun-%-tool-images-pods", forms, " ")
    for (each in forms) renamed[with(forms[each], old)] = with(forms[each], new)
}
function with(form, name,    at) { at = index(form, "%"); return substr(form, 1, at - 1) name substr(form, at + 1) }
{
    text = $0
    sub(/^ *(- )?/, "", text)
    at = index(text, ": ")
    key = substr(text, 1, at - 1)
    value = made = substr(text, at + 2)
    if (!at) { print; next }
    if (ENVIRON["NEW_APP"] != "") {
        if (key == "image" && value == ENVIRON["APP"]) made = ENVIRON["NEW_APP"]
        if (key == "TOOL_IMAGE") made = ENVIRON["NEW_TOOLS"]
        if (key == "name" && value ~ /^tailrun-config-[0-9a-z]*$/) made = value ENVIRON["SUFFIX"]
        opened = "\047\"^(" ENVIRON["ALLOWED"]
        if (key == "expression" && index(value, opened) == 1)
            made = "\047\"^(" ENVIRON["NEW_ALLOWED"] substr(value, length(opened) + 1)
    }
    if (new != old) {
        if (key in names_it && value in renamed) made = renamed[value]
        if (key ~ /^(TOOL_SYNC_URL|S3_ENDPOINT|url)$/ && match(value, /^http:\/\/[a-z0-9-]+\.agents\.svc(:[0-9]+)?(\/v1\/queue)?$/)) {
            at_host = index(value, "." old ".svc")
            made = substr(value, 1, at_host) new substr(value, at_host + length(old) + 1)
        }
    }
    print substr($0, 1, length($0) - length(value)) made
}'

# documents [-v] PATTERN [PATTERN]: those of all.yaml that have lines with both (-v: all others)
documents() {
    local other=no
    [ "$1" != -v ] || { other=yes && shift; }
    awk -v one="$1" -v two="${2:-$1}" -v other="$other" '
        function out() { if (text != "" && (has_one && has_two) == (other == "no")) printf "---\n%s", text; text = ""; has_one = has_two = 0 }
        /^---$/ { out(); next }
        $0 ~ one { has_one = 1 }
        $0 ~ two { has_two = 1 }
        { text = text $0 "\n" }
        END { out() }' "$WORK/all.yaml"
}
WORKER=('^kind: Deployment$' '^  name: agent-worker$')

apply() { # apply WHAT: objects from stdin
    kubectl apply -f - >"$WORK/out" 2>&1 || { cat "$WORK/out" >&2 && die "$1 could not be applied"; }
    grep -v ' unchanged$' "$WORK/out" >&2 || true
}

make_namespaces() {
    if [ $HELM = no ]; then documents '^kind: Namespace$' | apply namespaces && return; fi
    exists namespace "$NAMESPACE" || kubectl create namespace "$NAMESPACE" >&2 || die "namespace $NAMESPACE could not be made"
}

token() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
json() { printf '"%s"' "$(printf '%s' "$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g')"; }

# put_secret SECRET DATA: makes it, or changes what DATA (members of a JSON object) names, over stdin.
put_secret() {
    local before after
    before=$(kube get secret "$1" -o 'jsonpath={.metadata.resourceVersion}' 2>/dev/null)
    if [ -z "$before" ]; then
        printf '{"apiVersion":"v1","kind":"Secret","metadata":{"name":"%s","namespace":"%s"},"type":"Opaque","stringData":{%s}}' "$1" "$NAMESPACE" "$2" |
            kubectl create -f - >&2 || die "the Secret $1 could not be made"
    elif [ -n "$2" ]; then
        printf '{"stringData":{%s}}' "$2" | kube patch secret "$1" --type merge --patch-file /dev/stdin >/dev/null || die "the Secret $1 could not be changed"
        after=$(kube get secret "$1" -o 'jsonpath={.metadata.resourceVersion}')
        [ "$before" = "$after" ] || RESTART=yes
    fi
}

# What is given replaces what is there, the rest stays. Dev has Secrets of its own.
put_secrets() {
    local each data='' token
    if [ "$OVERLAY" = dev ] && [ $HELM = no ]; then return; fi
    for each in $NAMES; do
        [ -z "$(given "$each")" ] || data="$data${data:+,}$(json "$each"):$(json "$(given "$each")")"
    done
    put_secret "$SECRET" "$data"
    token=$(given API_TOKEN)
    if [ -z "$token" ] && [ -z "$(known "$TOKEN_SECRET")" ]; then token=$(token_before); fi
    put_secret "$TOKEN_SECRET" "${token:+\"API_TOKEN\":$(json "$token")}"
}

# Releases before had the token among the credentials, where it stays for a rollback to them.
token_before() {
    local found
    found=$(kube get secret "$SECRET" -o 'go-template={{with .data.API_TOKEN}}{{. | base64decode}}{{end}}' 2>/dev/null)
    [ -n "$found" ] && [ "$found" != '<no value>' ] || found=$(token)
    printf '%s' "$found"
}

# Helm 4 applies on the server's side, where fields that --in-process and its way back have patched are kubectl's.
taking_back() { case $(helm version --template '{{.Version}}' 2>/dev/null) in v[123].*) ;; *) echo --server-side=true --force-conflicts ;; esac }

helm_release() { # helm_release [ARGUMENT…]
    set -- upgrade --install tailrun "$ROOT/helm/tailrun" --namespace "$NAMESPACE" --timeout "${TIMEOUT}s" \
        --values "$ROOT/k8s/overlays/$OVERLAY/values.yaml" ${VALUES:+--values "$VALUES"} \
        --set "apiToken.existingSecret.name=$TOKEN_SECRET" --set-json "secrets.existing=[\"$SECRET\"]" --set "tools.namespace.name=$TOOLS" \
        --set "image.repository=${IMAGE%:*}" --set-string "image.tag=${IMAGE##*:}" \
        --set "tools.image.repository=${TOOL_IMAGE%:*}" --set-string "tools.image.tag=${TOOL_IMAGE##*:}" "$@"
    # shellcheck disable=SC2046 # words
    helm "$@" $(taking_back) >"$WORK/out" 2>&1 || { cat "$WORK/out" >&2 && diagnose && die 'helm failed'; }
}

# ---- roll-outs

diagnose() {
    local pod
    say '' && say "Pods of $NAMESPACE:"
    kube get pods >&2
    say '' && say 'Last events:'
    kube get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 15 >&2
    for pod in $(kube get pods --no-headers 2>/dev/null | awk '{ split($2, n, "/"); if (n[1] != n[2] && $3 != "Completed") print $1 }' | head -n 3); do
        say '' && say "Last lines of $pod:"
        { kube logs "$pod" --all-containers --prefix --previous --tail=15 || kube logs "$pod" --all-containers --prefix --tail=15; } >"$WORK/out" 2>&1
        tail -n 30 "$WORK/out" >&2
    done
    say '' && say 'More in docs/troubleshooting.md'
}

rolled_out() { # rolled_out DEPLOYMENT|KIND/NAME…
    local each
    for each in "$@"; do
        say "Waiting for $each …"
        case $each in */*) ;; *) each=deployment/$each ;; esac
        kube rollout status "$each" --timeout="${TIMEOUT}s" >"$WORK/out" 2>&1 ||
            { tail -n 2 "$WORK/out" >&2 && diagnose && die "$each is not ready after $TIMEOUT s"; }
    done
}

# The servers that the overlay brings: the API may be up without the store of files, and no run is.
servers_rolled_out() {
    local found
    found=$(kube get statefulsets -l app.kubernetes.io/name=tailrun -o 'jsonpath={range .items[*]}statefulset/{.metadata.name}{"\n"}{end}') ||
        die 'the servers of the overlay could not be listed'
    # shellcheck disable=SC2086 # words
    rolled_out $found
}

next_steps() {
    cat <<TEXT
Tailrun is in namespace $NAMESPACE. Check it, then use it:

  ./verify.sh --namespace $NAMESPACE
  kubectl -n $NAMESPACE port-forward service/agent-api 8080:80 &
  kubectl -n $NAMESPACE logs -f deployment/agent-worker

The token stands in a Secret, as API_TOKEN: kubectl -n $NAMESPACE get secrets. docs/operations.md says what to look after.
TEXT
}

install() {
    RESTART=no
    out_of_process_first
    make_namespaces
    put_secrets
    if [ $HELM = yes ]; then
        helm_release --dry-run=server
        helm_release
    else
        kubectl apply --dry-run=server -f "$WORK/all.yaml" >"$WORK/out" 2>&1 || { cat "$WORK/out" >&2 && die 'the server refuses these objects; nothing was changed'; }
        documents -v "${WORKER[@]}" | apply 'the objects'
        [ $RESTART = no ] || { exists deployment agent-api && kube rollout restart deployment/agent-api >&2; }
        rolled_out agent-api # its init container migrates: new workers only then
        documents "${WORKER[@]}" | apply 'the worker'
    fi
    [ $RESTART = no ] || kube rollout restart deployment/agent-worker >&2
    servers_rolled_out
    rolled_out agent-api agent-worker
    next_steps
}

dry_run() {
    if [ $HELM = yes ]; then
        exists namespace "$NAMESPACE" && helm_release --dry-run=server
    elif exists namespace "$NAMESPACE" && exists namespace "$TOOLS"; then
        kubectl apply --dry-run=server -f "$WORK/all.yaml" || die 'the server refuses these objects'
    else
        say "Namespace $NAMESPACE or $TOOLS is not there yet, so the server can't check what goes into it."
        kubectl apply --dry-run=client -f "$WORK/all.yaml" || die 'these objects are not valid'
    fi
    say 'Nothing was changed.'
}

# The newest revision before this one that came up: helm by itself would go back to one that failed.
last_good() {
    helm history tailrun --namespace "$NAMESPACE" 2>/dev/null |
        awk -F '\t' 'NR > 1 { before = good; if ($3 ~ /^(superseded|deployed) *$/) good = $1 + 0 } END { if (before) print before }'
}

rollback() {
    local revision
    out_of_process_first
    if [ $HELM = yes ]; then
        revision=$(last_good) && [ -n "$revision" ] || die 'there is no release before this one'
        # shellcheck disable=SC2046 # words
        helm rollback tailrun "$revision" --namespace "$NAMESPACE" --timeout "${TIMEOUT}s" $(taking_back) >&2 || die 'helm could not roll back'
    else
        kube rollout undo deployment/agent-worker deployment/agent-api >&2 || die 'there is no release before this one'
    fi
    rolled_out agent-worker agent-api
    say 'The release before runs again; the database keeps its tables, which it knows (docs/deployment.md).'
}

# What would set the API back would leave the workers at zero and their autoscaler paused.
out_of_process_first() {
    if exists networkpolicy agent-api-in-process; then die 'the API works on runs itself: --out-of-process first'; fi
}

# Whether the API starts a worker of its own where none is alive (WORKER_FALLBACK_S): it has all that this needs.
falls_back() {
    [ -n "$(kube get deployment agent-api -o 'jsonpath={.metadata.annotations.tailrun/worker-fallback}' 2>/dev/null)" ] &&
        ! exists networkpolicy agent-api-in-process
}

stop_workers() {
    if exists scaledobject agent-worker; then kube annotate scaledobject agent-worker --overwrite autoscaling.keda.sh/paused-replicas=0 >&2; fi
    kube scale deployment agent-worker --replicas=0 >&2 # an HPA leaves a deployment of 0 alone
}

in_process() { # the API's pods get the worker's rights and its way to the cluster
    local replicas each env
    replicas=$(kube get deployment agent-worker -o 'jsonpath={.spec.replicas}') || die "no deployment agent-worker in $NAMESPACE"
    [ "$replicas" = 0 ] || kube annotate deployment agent-worker --overwrite "tailrun/replicas=$replicas" >&2
    if falls_back; then
        stop_workers
        say 'The API lets a worker of its own run where no other is alive (WORKER_FALLBACK_S); --out-of-process ends that.'
        return
    fi
    kube apply -f - >&2 <<'TEXT' || die 'the network policy could not be made'
{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"agent-api-in-process","labels":{"app.kubernetes.io/name":"tailrun"}},
 "spec":{"podSelector":{"matchLabels":{"app.kubernetes.io/name":"tailrun","app.kubernetes.io/component":"api"}},"policyTypes":["Egress"],
 "egress":[{"ports":[{"protocol":"TCP","port":443},{"protocol":"TCP","port":6443}]}]}}
TEXT
    env=''
    for each in $WORKERS_OWN; do env=$env${env:+,}$(env_of_worker "$each"); done
    patch_api '["api","--with-worker"]' agent-worker true 90 "$env"
    rolled_out agent-api
    stop_workers
    say 'The API works on runs itself; --out-of-process ends that.'
}

out_of_process() {
    local replicas each env
    replicas=$(kube get deployment agent-worker -o 'jsonpath={.metadata.annotations.tailrun/replicas}') || die "no deployment agent-worker in $NAMESPACE"
    kube scale deployment agent-worker --replicas="${replicas:-1}" >&2
    if exists scaledobject agent-worker; then kube annotate scaledobject agent-worker autoscaling.keda.sh/paused-replicas- >&2; fi
    rolled_out agent-worker
    if falls_back; then return; fi
    # shellcheck disable=SC2086 # names without spaces
    env=$(printf ',{"name":"%s","value":"","valueFrom":null}' $WORKERS_OWN)
    patch_api '["api"]' agent-api false 45 "${env#,}"
    kube delete networkpolicy agent-api-in-process --ignore-not-found >&2
    rolled_out agent-api
    # or `rollout undo` would go back to the mode that ended here
    kube get replicasets -l app.kubernetes.io/name=tailrun,app.kubernetes.io/component=api \
        -o 'jsonpath={range .items[?(@.spec.template.spec.serviceAccountName=="agent-worker")]}{.metadata.name}{"\n"}{end}' |
        while read -r each; do kube delete replicaset "$each" >&2; done
}

# shellcheck disable=SC2016 # the server reads $patch
env_of_worker() { # env_of_worker NAME: has it from where the worker has it, a key of a Secret or a whole one
    local from
    from=$(kube get deployment agent-worker -o "jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"$1\")].valueFrom}")
    if [ -n "$from" ]; then printf '{"name":"%s","value":null,"valueFrom":%s}' "$1" "$from"; else printf '{"name":"%s","$patch":"delete"}' "$1"; fi
}

patch_api() { # patch_api ARGS ACCOUNT MOUNT GRACE VARIABLE
    kube patch deployment agent-api --type strategic --patch "{\"spec\":{\"template\":{\"spec\":{\"serviceAccountName\":\"$2\",\"automountServiceAccountToken\":$3,\"terminationGracePeriodSeconds\":$4,\"containers\":[{\"name\":\"api\",\"args\":$1,\"env\":[$5]}]}}}}" >&2 ||
        die 'the API could not be changed'
}

uninstall() {
    if [ $HELM = yes ]; then
        if helm history tailrun --namespace "$NAMESPACE" >/dev/null 2>&1; then # status fails where a kind (KEDA's) is gone
            helm uninstall tailrun --namespace "$NAMESPACE" --wait --timeout "${TIMEOUT}s" >&2 ||
                die "helm could not uninstall: it needs the kinds of all objects (KEDA's, the Prometheus operator's), even of those that are gone"
        fi
    else
        documents -v '^kind: (Namespace|Secret)$' | kubectl delete --ignore-not-found -f - >&2 || die 'not everything could be deleted'
        kube get configmaps -o name 2>/dev/null | grep '/tailrun-config-' | while read -r each; do kube delete "$each" >&2; done
    fi
    kube delete networkpolicy agent-api-in-process --ignore-not-found >&2
    if [ $PURGE = yes ]; then
        kube delete persistentvolumeclaims -l app.kubernetes.io/name=tailrun --ignore-not-found --wait=false >&2
        kubectl delete namespace "$TOOLS" "$NAMESPACE" --ignore-not-found --timeout="${TIMEOUT}s" >&2 || die 'the namespaces do not go away'
    else
        say "Volumes and secrets stay in $NAMESPACE: kubectl -n $NAMESPACE get persistentvolumeclaims,secrets. --purge-data deletes them."
    fi
}

check_tools
[ $BUILD = no ] || build_images
case $IMAGE:$TOOL_IMAGE in *@*:) die '--image by digest: give --tool-image as well' 2 ;; esac
[ -z "$IMAGE" ] || TOOL_IMAGE=${TOOL_IMAGE:-$(toolbox_of "$IMAGE")}
[ -z "$IMAGE" ] || IMAGE=$(tagged "$IMAGE") TOOL_IMAGE=$(tagged "$TOOL_IMAGE")
[ $HELM = no ] || IMAGE=${IMAGE:-tailrun:$VERSION} TOOL_IMAGE=${TOOL_IMAGE:-tailrun-toolbox:$VERSION}
case $ACTION in
install | dry-run)
    check_rights
    check_settings
    [ $HELM = yes ] || render
    if [ "$ACTION" = install ]; then install; else dry_run; fi
    ;;
rollback) rollback ;;
in-process) in_process ;;
out-of-process) out_of_process ;;
uninstall)
    [ $HELM = yes ] || render
    uninstall
    ;;
esac
