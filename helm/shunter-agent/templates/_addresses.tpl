{{/* What is taken from addresses that are given as URLs. */}}

{{- define "shunter-agent.port" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) $port -}}
{{- end -}}

{{- define "shunter-agent.serverPort" -}}
{{- include "shunter-agent.port" .Values.api.url -}}
{{- end -}}

{{/* As JSON. */}}
{{- define "shunter-agent.proxyPorts" -}}
{{- $ports := list -}}
{{- range compact (list .Values.proxy.http .Values.proxy.https) -}}
{{- $ports = append $ports (include "shunter-agent.port" .) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* Where KEDA, which is in another namespace, finds the server's metrics: a short name is one of this namespace. */}}
{{- define "shunter-agent.metricsUrl" -}}
{{- if .Values.autoscaling.metrics.url -}}
{{- .Values.autoscaling.metrics.url -}}
{{- else -}}
{{- $url := urlParse .Values.api.url -}}
{{- if not (contains "." $url.hostname) -}}
{{- $full := printf "%s.%s" $url.hostname .Release.Namespace -}}
{{- $_ := set $url "host" (replace $url.hostname $full $url.host) -}}
{{- end -}}
{{- $_ := set $url "path" (printf "%s/metrics" (trimSuffix "/" $url.path)) -}}
{{- urlJoin $url -}}
{{- end -}}
{{- end -}}
