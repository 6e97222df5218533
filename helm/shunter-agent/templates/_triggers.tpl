{{/*
What KEDA counts: runs that are due, and attempts that are live, so that no agent is taken away from what it runs.

Of a server's page KEDA takes one sample for each trigger, by all its labels. There are samples for each queue of each pool,
with 0 where nothing waits.
*/}}

{{- define "shunter-agent.countedQueues" -}}
{{- default (list "default") (concat .Values.queues .Values.autoscaling.metrics.queues | uniq) | toJson -}}
{{- end -}}

{{/* The triggers; takes a dict with root, and target: so many runs for each agent. */}}
{{- define "shunter-agent.triggers" -}}
{{- $root := .root -}}
{{- $target := .target -}}
{{- $metrics := .root.Values.autoscaling.metrics -}}
{{- if eq $metrics.source "prometheus" -}}
{{- $pools := join "|" .root.Values.pools | replace "." "[.]" -}}
{{- $queues := "" -}}
{{- if .root.Values.queues -}}
{{- $queues = printf ",queue=~%q" (join "|" .root.Values.queues | replace "." "[.]") -}}
{{- end -}}
{{- /* Several servers of one database tell the same. */ -}}
{{- $due := printf "sum(max by (pool, queue) (shunter_waiting_runs{due=\"true\",pool=~%q%s}))" $pools $queues -}}
{{- $live := printf "sum(max by (pool) (shunter_active_leases{pool=~%q}))" $pools -}}
{{- $own := dict "serverAddress" $metrics.prometheusAddress "query" (printf "%s + %s" $due $live) "threshold" (toString $target) -}}
{{- $own = set $own "ignoreNullValues" "false" -}}
{{- if $metrics.secret.name -}}
{{- $own = set $own "authModes" "bearer" -}}
{{- end -}}
- type: prometheus
  name: runs
  metadata:
    {{- toYaml (mergeOverwrite $own $metrics.extraMetadata) | nindent 4 }}
  {{- include "shunter-agent.triggerAuthentication" $root | nindent 2 }}
{{- else -}}
{{- range $number, $pool := .root.Values.pools }}
{{- range $place, $queue := include "shunter-agent.countedQueues" $root | fromJsonArray }}
- type: metrics-api
  name: due_{{ $number }}_{{ $place }}
  metadata:
    {{- include "shunter-agent.sample" (dict "root" $root "target" $target "sample" (printf "shunter_waiting_runs{pool=%q,queue=%q,due=\"true\"}" $pool $queue)) | nindent 4 }}
  {{- include "shunter-agent.triggerAuthentication" $root | nindent 2 }}
{{- end }}
- type: metrics-api
  name: live_{{ $number }}
  metadata:
    {{- include "shunter-agent.sample" (dict "root" $root "target" $target "sample" (printf "shunter_active_leases{pool=%q}" $pool)) | nindent 4 }}
  {{- include "shunter-agent.triggerAuthentication" $root | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.sample" -}}
{{- $own := dict "url" (include "shunter-agent.metricsUrl" .root) "format" "prometheus" "valueLocation" .sample -}}
{{- $own = mergeOverwrite $own (dict "targetValue" (toString .target) "authMode" "bearer") -}}
{{- toYaml (mergeOverwrite $own .root.Values.autoscaling.metrics.extraMetadata) -}}
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
