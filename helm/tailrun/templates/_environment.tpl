{{/*
The settings, as environment variables. The ConfigMap holds what is no secret; Secrets come in whole
(secrets.existing, secrets.values) or by key (secrets.references); the bundled servers' addresses are
put together from their passwords, so that no Secret has to hold a URL.
*/}}
{{- define "tailrun.config" -}}
HOST: 0.0.0.0
PORT: "8080"
WORKER_HOST: 0.0.0.0
WORKER_PORT: "9090"
DATA_DIR: /data
TOOL_EXECUTOR: {{ .Values.tools.executor }}
{{- if eq .Values.tools.executor "kubernetes" }}
TOOL_NAMESPACE: {{ .Values.tools.namespace.name }}
TOOL_IMAGE: {{ include "tailrun.toolImage" . }}
{{- if eq (include "tailrun.files" .) "api" }}
STAGING_PORT: {{ include "tailrun.stagingPort" . | quote }}
TOOL_SYNC_URL: {{ include "tailrun.stagingUrl" . }}
{{- end }}
{{- with .Values.tools.imagesAllowed }}
TOOL_IMAGES_ALLOWED: {{ join "," . | quote }}
{{- end }}
{{- with .Values.tools.profiles }}
TOOL_PROFILES: {{ toJson . | quote }}
{{- end }}
{{- with .Values.image.pullSecrets }}
TOOL_IMAGE_PULL_SECRET: {{ first . }}
{{- end }}
{{- end }}
{{- with .Values.bundled.s3 }}
{{- if .enabled }}
S3_BUCKET: {{ .bucket }}
S3_ENDPOINT: http://tailrun-s3.{{ $.Release.Namespace }}.svc:7070
S3_REGION: us-east-1
S3_ACCESS_KEY: tailrun
{{- end }}
{{- end }}
{{- range $name, $value := .Values.config }}
{{ $name }}: {{ if kindIs "float64" $value }}{{ $value | toJson | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "tailrun.envFrom" -}}
- configMapRef:
    name: tailrun-config
{{- if .root.Values.secrets.values }}
- secretRef:
    name: tailrun-secrets
{{- end }}
{{- range .root.Values.secrets.existing }}
- secretRef:
    name: {{ . }}
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Secrets that a component has no use for. A Secret comes in whole, so what may stand in it is set to nothing:
an empty value counts as none, and `env` goes before `envFrom`. WEBHOOK_SECRET tells the API that there are webhooks. */}}
{{- define "tailrun.withheld" -}}
{{- $of := dict
    "api" (list "LLM_KEY" "LLM_PROXY" "PROJECTS_TOKEN")
    "apiWithWorker" list
    "worker" (list "API_TOKEN" "UPSTASH_REDIS_REST_TOKEN" "UPSTASH_REDIS_REST_URL")
    "migrate" (list "API_TOKEN" "LLM_KEY" "LLM_PROXY" "PROJECTS_KEY" "PROJECTS_TOKEN" "REDIS_SENTINEL_PASSWORD" "REDIS_SENTINEL_USERNAME" "REDIS_URL" "S3_ACCESS_KEY" "S3_SECRET_KEY" "UPSTASH_REDIS_REST_TOKEN" "UPSTASH_REDIS_REST_URL" "WEBHOOK_SECRET") }}
{{- get $of . | toJson }}
{{- end }}

{{- define "tailrun.env" -}}
{{- $migrates := eq .component "migrate" }}
{{- with .root.Values.bundled }}
{{- if and .redis.enabled (not $migrates) }}
- name: BUNDLED_REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: tailrun-redis, key: password}}
- name: REDIS_URL
  value: redis://:$(BUNDLED_REDIS_PASSWORD)@tailrun-redis:6379/0
{{- end }}
{{- if .postgresql.enabled }}
- name: BUNDLED_POSTGRESQL_PASSWORD
  valueFrom: {secretKeyRef: {name: tailrun-postgresql, key: password}}
- name: DATABASE_URL
  value: postgresql://tailrun:$(BUNDLED_POSTGRESQL_PASSWORD)@tailrun-postgresql:5432/tailrun
{{- end }}
{{- if and .s3.enabled (not $migrates) }}
- name: S3_SECRET_KEY
  valueFrom: {secretKeyRef: {name: tailrun-s3, key: password}}
{{- end }}
{{- end }}
{{- $of := ternary "apiWithWorker" .component (and (eq .component "api") (eq (include "tailrun.fallback" .root) "yes")) }}
{{- $withheld := include "tailrun.withheld" $of | fromJsonArray }}
{{- range $name, $reference := .root.Values.secrets.references }}
{{- if not (has $name $withheld) }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $reference.name }}, key: {{ $reference.key }}}}
{{- end }}
{{- end }}
{{- range $withheld }}
- {name: {{ . }}, value: ""}
{{- end }}
{{- if eq .component "api" }}
- name: API_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "tailrun.tokenSecret" .root }}, key: {{ include "tailrun.tokenKey" .root }}}}
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Pods restart when a setting or a secret changes; Secrets of others are looked up, where Helm has a cluster. */}}
{{- define "tailrun.checksums" -}}
checksum/config: {{ include "tailrun.config" . | sha256sum }}
checksum/secrets: {{ list .Values.secrets.values .Values.apiToken .Values.bundled.redis.password .Values.bundled.postgresql.password .Values.bundled.s3.password | toJson | sha256sum }}
{{- $names := append .Values.secrets.existing .Values.apiToken.existingSecret.name }}
{{- range .Values.secrets.references }}
{{- $names = append $names .name }}
{{- end }}
{{- $found := list }}
{{- range compact $names }}
{{- $found = append $found (dig "data" dict (lookup "v1" "Secret" $.Release.Namespace .)) }}
{{- end }}
checksum/references: {{ $found | toJson | sha256sum }}
{{- end }}

{{- define "tailrun.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tailrun.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "tailrun.placement" -}}
{{- if .root.Values.priorityClass.enabled }}
priorityClassName: {{ include "tailrun.clusterName" .root }}
{{- end }}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tailrun.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $lost := .root.Values.nodeLossSeconds }}
{{- if or .values.tolerations $lost }}
tolerations:
{{- with .values.tolerations }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $lost }}
{{- range list "not-ready" "unreachable" }}
  - {key: node.kubernetes.io/{{ . }}, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $lost }}}
{{- end }}
{{- end }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The init containers and the hook do the same thing; a lock in the database lets one of them do it. */}}
{{- define "tailrun.migrateContainer" -}}
name: migrate
image: {{ include "tailrun.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [migrate]
envFrom:
  {{- include "tailrun.envFrom" (dict "root" .root "extra" .values.extraEnvFrom) | nindent 2 }}
{{- with include "tailrun.env" (dict "root" .root "component" "migrate" "extra" .values.extraEnv) | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
resources:
  requests: {cpu: 50m, memory: 96Mi, ephemeral-storage: 16Mi}
  limits: {memory: 512Mi, ephemeral-storage: 256Mi}
securityContext:
  {{- include "tailrun.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
  {{- with .values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "tailrun.volumes" -}}
- name: data
  {{- if .root.Values.data.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .root.Values.data.existingClaim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .values.scratchSize }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: {{ .values.scratchSize }}}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
