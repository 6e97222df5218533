{{/* Rules of network policies for what goes out. */}}

{{/* Its pods listen on 5353 in OpenShift, whose network looks at a port when a Service has been left behind. */}}
{{- define "shunter-server.toDns" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
    - {protocol: UDP, port: 5353}
    - {protocol: TCP, port: 5353}
{{- end -}}

{{- define "shunter-server.toDatabase" -}}
- ports:
    - {protocol: TCP, port: {{ .Values.database.port }}}
  {{- with .Values.networkPolicy.egress.databaseTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "shunter-server.toCluster" -}}
- ports:
    {{- range .Values.networkPolicy.egress.apiServerPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .Values.networkPolicy.egress.apiServerTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Ports of what the server asks beyond the cluster: providers, keys of other clusters, proxies. */}}
{{- define "shunter-server.outsidePorts" -}}
{{- $urls := list .Values.oidc.issuer .Values.proxy.http .Values.proxy.https -}}
{{- range .Values.trust -}}
{{- $urls = concat $urls (list .issuer .jwks .apiServer) -}}
{{- end -}}
{{- $ports := list -}}
{{- range $urls -}}
{{- if contains "://" (default "" .) -}}
{{- $url := urlParse . -}}
{{- $ports = append $ports (default (ternary "443" "80" (eq $url.scheme "https")) (regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host))) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | sortAlpha | join " " -}}
{{- end -}}
