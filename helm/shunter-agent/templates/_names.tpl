{{/* Names and labels. */}}

{{- define "shunter-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Of everything of the release: short enough for what Kubernetes appends to it. */}}
{{- define "shunter-agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "shunter-agent.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "shunter-agent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "shunter-agent.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What selects every pod of the release, that of the test too. It never changes: a Deployment's selector cannot. */}}
{{- define "shunter-agent.releaseLabels" -}}
app.kubernetes.io/name: {{ include "shunter-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What selects the agents alone. */}}
{{- define "shunter-agent.selectorLabels" -}}
{{ include "shunter-agent.releaseLabels" . }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "shunter-agent.chartLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: shunter
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/*
Labels and annotations of an object; takes a dict with root, and component (agent), labels and annotations of its own.
Those of the chart win, since selectors go by them. A pod does without the chart's version, so that it is not replaced
for a chart that changes nothing of it.
*/}}
{{- define "shunter-agent.metadata" -}}
{{- $own := include "shunter-agent.chartLabels" .root | fromYaml -}}
{{- if .pod -}}
{{- $own = omit $own "helm.sh/chart" -}}
{{- end -}}
{{- $own = merge $own (include "shunter-agent.releaseLabels" .root | fromYaml) -}}
{{- $own = merge $own (dict "app.kubernetes.io/component" (default "agent" .component)) -}}
labels:
  {{- toYaml (mergeOverwrite (dict) .root.Values.commonLabels (default (dict) .labels) $own) | nindent 2 }}
{{- with mergeOverwrite (dict) .root.Values.commonAnnotations (default (dict) .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Namespaces in which the agents of a kubernetes pool have rights, as JSON. */}}
{{- define "shunter-agent.namespaces" -}}
{{- default (list .Release.Namespace) .Values.namespaces | uniq | toJson -}}
{{- end -}}

{{/* With the release's namespace: releases of the same name in two namespaces may have rights in a third. */}}
{{- define "shunter-agent.roleName" -}}
{{- printf "%s-%s" .Release.Namespace (include "shunter-agent.fullname" .) -}}
{{- end -}}
