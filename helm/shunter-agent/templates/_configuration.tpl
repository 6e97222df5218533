{{/* The files that agents read below /etc/shunter: the template of their pools and their own policy. */}}

{{/* The template of the pools, with the namespace in which the agents have rights; empty: pools keep theirs. */}}
{{- define "shunter-agent.template" -}}
{{- if .Values.createPools -}}
{{- $template := deepCopy .Values.template -}}
{{- if eq .Values.poolType "kubernetes" -}}
{{- $template = merge $template (dict "namespace" (include "shunter-agent.namespaces" . | fromJsonArray | first)) -}}
{{- end -}}
{{- if $template -}}
{{- $template | toPrettyJson -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "shunter-agent.configuration" -}}
{{- with include "shunter-agent.template" . }}
template.json: |
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.policy }}
agent.toml: |
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}
