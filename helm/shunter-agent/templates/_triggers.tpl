{{/*
What KEDA counts: what the pools would run, had they agents without end. Attempts that are live count, so that no agent is
taken away from what it runs; what is held back by a pause or a limit does not, as another agent would start none of it.

Of a server's page KEDA takes one sample for each trigger, by all its labels. There is one for each pool, 0 where nothing is.
*/}}

{{/* The triggers; takes a dict with root, and target: so many runs for each agent. */}}
{{- define "shunter-agent.triggers" -}}
{{- $root := .root -}}
{{- $target := .target -}}
{{- $metrics := .root.Values.autoscaling.metrics -}}
{{- if eq $metrics.source "prometheus" -}}
{{- $pools := join "|" .root.Values.pools | replace "." "[.]" -}}
{{- /* Several servers of one database tell the same. */ -}}
{{- $query := printf "sum(max by (pool) (shunter_pool_wanted_slots{pool=~%q}))" $pools -}}
{{- $own := dict "serverAddress" $metrics.prometheusAddress "query" $query "threshold" (toString $target) -}}
{{- $own = set $own "ignoreNullValues" "false" -}}
{{- if $metrics.secret.name -}}
{{- $own = set $own "authModes" "bearer" -}}
{{- end -}}
- type: prometheus
  name: wanted
  metadata:
    {{- toYaml (mergeOverwrite $own $metrics.extraMetadata) | nindent 4 }}
  {{- include "shunter-agent.triggerAuthentication" $root | nindent 2 }}
{{- else -}}
{{- range $number, $pool := .root.Values.pools }}
{{- $own := dict "url" (include "shunter-agent.metricsUrl" $root) "format" "prometheus" -}}
{{- $own = set $own "valueLocation" (printf "shunter_pool_wanted_slots{pool=%q}" $pool) -}}
{{- $own = mergeOverwrite $own (dict "targetValue" (toString $target) "authMode" "bearer") }}
- type: metrics-api
  name: wanted_{{ $number }}
  metadata:
    {{- toYaml (mergeOverwrite $own $metrics.extraMetadata) | nindent 4 }}
  {{- include "shunter-agent.triggerAuthentication" $root | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.triggerAuthentication" -}}
{{- if .Values.autoscaling.metrics.authenticationRef -}}
authenticationRef:
  {{- toYaml .Values.autoscaling.metrics.authenticationRef | nindent 2 }}
{{- else if .Values.autoscaling.metrics.secret.name -}}
authenticationRef:
  name: {{ include "shunter-agent.fullname" . }}
{{- end -}}
{{- end -}}

{{/* The sum of all triggers, for which KEDA has a formula: by itself it takes the greatest. */}}
{{- define "shunter-agent.sumOfTriggers" -}}
{{- $names := list -}}
{{- range include "shunter-agent.triggers" (dict "root" . "target" 1) | fromYamlArray -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- join " + " $names -}}
{{- end -}}
