{{/* Ports of addresses that are given as URLs. */}}

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
