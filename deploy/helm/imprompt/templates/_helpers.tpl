{{- define "imprompt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "imprompt.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains (include "imprompt.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "imprompt.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "imprompt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "imprompt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "imprompt.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "imprompt.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "imprompt.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "imprompt.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "imprompt.image" -}}
image: {{ printf "%s:%s" .repository .tag | quote }}
imagePullPolicy: {{ default "IfNotPresent" .pullPolicy }}
{{- end }}

{{- define "imprompt.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Of what runs before the server: small, and bounded. */}}
{{- define "imprompt.initResources" -}}
requests: { cpu: 100m, memory: 128Mi }
limits: { memory: 128Mi }
{{- end }}

{{- define "imprompt.arguments" -}}
{{- if eq .Values.models.source "s3" }}
- {{ printf "--model-repository=%s" .Values.models.s3.url | quote }}
{{- else }}
- --model-repository=/models/repository
{{- end }}
{{- if eq .Values.backend.source "image" }}
- --backend-directory=/backends
{{- end }}
{{- if .Values.models.load }}
- --model-control-mode=explicit
{{- range .Values.models.load }}
- --load-model={{ . }}
{{- end }}
{{- end }}
- --http-port=8000
- --grpc-port=8001
- --metrics-port=8002
- --allow-gpu-metrics=false
- --exit-timeout-secs={{ .Values.server.exitTimeoutSeconds }}
{{- if .Values.server.threads }}
- --backend-config=imprompt,threads={{ .Values.server.threads }}
{{- end }}
{{- range .Values.server.extraArguments }}
- {{ . | quote }}
{{- end }}
{{- end }}
