{{/*
Names are fixed, whatever the release is called: documents, alerts and people say agent-api and
agent-worker. One release a namespace, therefore.
*/}}
{{- define "tailrun.selector" -}}
app.kubernetes.io/name: tailrun
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "tailrun.labels" -}}
app.kubernetes.io/name: tailrun
app.kubernetes.io/part-of: tailrun
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Without versions: a pod is not replaced because the chart was renamed around it. */}}
{{- define "tailrun.podLabels" -}}
{{ include "tailrun.selector" . }}
app.kubernetes.io/part-of: tailrun
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Cluster-wide objects carry the namespace in their names, for there may be several releases. */}}
{{- define "tailrun.clusterName" -}}
tailrun-{{ .Release.Namespace }}
{{- end }}

{{- define "tailrun.reference" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "tailrun.image" -}}
{{- if not .Values.image.repository -}}
{{- fail "\n\nimage.repository is not set: build the image and push it where the cluster can pull it, for example\n\n  docker build --target app -t registry.example/team/tailrun:0.1.0 . && docker push registry.example/team/tailrun:0.1.0\n  docker build --target toolbox -t registry.example/team/tailrun-toolbox:0.1.0 . && docker push registry.example/team/tailrun-toolbox:0.1.0\n\nthen add\n\n  --set image.repository=registry.example/team/tailrun --set tools.image.repository=registry.example/team/tailrun-toolbox\n" -}}
{{- end -}}
{{- include "tailrun.reference" (dict "image" .Values.image "root" .) -}}
{{- end }}

{{- define "tailrun.toolImage" -}}
{{- if not .Values.tools.image.repository -}}
{{- fail "\n\ntools.image.repository is not set, and tools run as Jobs: build the target toolbox of the Dockerfile and push it, for example\n\n  docker build --target toolbox -t registry.example/team/tailrun-toolbox:0.1.0 . && docker push registry.example/team/tailrun-toolbox:0.1.0\n\nthen add --set tools.image.repository=registry.example/team/tailrun-toolbox (or --set tools.executor=local to run tools inside of the worker)\n" -}}
{{- end -}}
{{- include "tailrun.reference" (dict "image" .Values.tools.image "root" .) -}}
{{- end }}

{{/* Globs of all images that tools may have, as a JSON list. Of our own every version (by digest, if it is named by
one): while a roll-out lasts, and after it was undone, workers of another release make Jobs too. */}}
{{- define "tailrun.toolImages" -}}
{{- $own := .Values.tools.image -}}
{{- $images := list (printf "%s%s*" $own.repository (ternary "@sha256:" ":" (not (empty $own.digest)))) -}}
{{- range $tool, $profile := .Values.tools.profiles -}}
{{- with $profile.image -}}{{- $images = append $images . -}}{{- end -}}
{{- end -}}
{{- concat $images .Values.tools.imagesAllowed | uniq | toJson -}}
{{- end }}

{{- define "tailrun.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tailrun.apiUrl" -}}
http://agent-api.{{ .Release.Namespace }}.svc{{ if ne (int .Values.api.service.port) 80 }}:{{ .Values.api.service.port }}{{ end }}
{{- end }}

{{/* How files reach tool pods: through the bundled store (bundled), a store of yours (s3), or the API (api). */}}
{{- define "tailrun.files" -}}
{{- if ne .Values.tools.executor "kubernetes" -}}
none
{{- else if .Values.bundled.s3.enabled -}}
bundled
{{- else if or .Values.config.S3_BUCKET .Values.tools.network.s3Ranges -}}
{{- if and .Values.networkPolicy.enabled (not .Values.tools.network.s3Ranges) -}}
{{- fail "\n\ntools.network.s3Ranges is not set, and files go through S3: name the ranges of addresses that your store has, for example\n\n  --set tools.network.s3Ranges='{203.0.113.0/24}'\n\nor let tools reach every public address on tools.network.s3Port with --set tools.network.s3Ranges='{any}'\n" -}}
{{- end -}}
s3
{{- else -}}
api
{{- end -}}
{{- end }}

{{- define "tailrun.stagingPort" -}}
8081
{{- end }}

{{- define "tailrun.stagingUrl" -}}
http://agent-api-staging.{{ .Release.Namespace }}.svc:{{ include "tailrun.stagingPort" . }}
{{- end }}

{{- define "tailrun.tokenSecret" -}}
{{- if .Values.apiToken.existingSecret.name -}}
{{ .Values.apiToken.existingSecret.name }}
{{- else if .Values.apiToken.value -}}
agent-api-token
{{- else -}}
{{- fail "\n\nNo token: give the bootstrap token of the API, for example --set apiToken.value=$(openssl rand -hex 32), or name a Secret that holds one with apiToken.existingSecret.name\n" -}}
{{- end -}}
{{- end }}

{{- define "tailrun.tokenKey" -}}
{{ if .Values.apiToken.existingSecret.name }}{{ .Values.apiToken.existingSecret.key }}{{ else }}API_TOKEN{{ end }}
{{- end }}

{{/* "yes" where an API may supervise a worker: it has that worker's rights, settings and time to end, then. */}}
{{- define "tailrun.fallback" -}}
{{- if gt (float64 (.Values.config.WORKER_FALLBACK_S | default 0)) 0.0 }}yes{{ end }}
{{- end }}

{{- define "tailrun.apiGrace" -}}
{{- $grace := int .Values.api.terminationGracePeriodSeconds }}
{{- if include "tailrun.fallback" . }}
{{- $grace = max $grace (add (include "tailrun.drainSeconds" .) 30 .Values.api.preStopSeconds) }}
{{- end }}
{{- $grace }}
{{- end }}

{{- define "tailrun.drainSeconds" -}}
{{ add (ceil (float64 (.Values.config.DRAIN_S | default 30))) (ceil (float64 (.Values.config.CANCEL_GRACE_S | default 5))) }}
{{- end }}
