{{/* What containers find in their environment. */}}

{{/* By which clients call this server in the cluster. */}}
{{- define "shunter-server.url" -}}
{{- printf "%s://%s.%s.svc:%v/api" (ternary "https" "http" (eq .Values.tls.mode "secret")) (include "shunter-server.fullname" .) .Release.Namespace .Values.service.port -}}
{{- end -}}

{{/* Names to which it answers: those of its Service and of its routes, and its pod's address, by which Prometheus calls it. */}}
{{- define "shunter-server.hosts" -}}
{{- $name := include "shunter-server.fullname" . -}}
{{- $namespace := .Release.Namespace -}}
{{- $hosts := list $name (printf "%s.%s" $name $namespace) (printf "%s.%s.svc" $name $namespace) (printf "%s.%s.svc.%s" $name $namespace .Values.clusterDomain) -}}
{{- if .Values.ingress.enabled -}}
{{- range .Values.ingress.hosts }}{{ $hosts = append $hosts .host }}{{ end -}}
{{- end -}}
{{- if .Values.gateway.enabled -}}
{{- $hosts = concat $hosts .Values.gateway.hostnames -}}
{{- end -}}
{{- concat $hosts .Values.allowedHosts (list "$(POD_IP)" "[$(POD_IP)]") | uniq | join "," -}}
{{- end -}}

{{/* Accounts without a namespace are of the release's own. */}}
{{- define "shunter-server.trust" -}}
{{- $trust := list -}}
{{- range .Values.trust -}}
{{- $account := ternary .serviceAccount (printf "%s/%s" $.Release.Namespace .serviceAccount) (contains "/" .serviceAccount) -}}
{{- $trust = append $trust (merge (dict "serviceAccount" $account) .) -}}
{{- end -}}
{{- toJson $trust -}}
{{- end -}}

{{/* Whether the server asks the API server of its own cluster, which it does by its pod's token. */}}
{{- define "shunter-server.asksCluster" -}}
{{- range .Values.trust }}{{ if not (or .issuer .apiServer) }}true{{ end }}{{ end -}}
{{- end -}}

{{/* The same for the review of tokens, for which its account needs a ClusterRole. */}}
{{- define "shunter-server.reviews" -}}
{{- range .Values.trust }}{{ if and .review (not .apiServer) }}true{{ end }}{{ end -}}
{{- end -}}

{{/* Of dict "name" "value": as the server reads it. */}}
{{- define "shunter-server.setting" -}}
- name: SHUNTER_{{ .name | replace "." "_" | upper }}
{{- if kindIs "slice" .value }}
  value: {{ join "," .value | quote }}
{{- else if and (kindIs "float64" .value) (eq (floor .value) .value) }}
  {{- /* Numbers of YAML are such, and a million is written 1e+06. */}}
  value: {{ .value | int64 | toString | quote }}
{{- else }}
  value: {{ .value | toString | quote }}
{{- end }}
{{- end -}}

{{/* Where the home is, and proxies and authorities, for whoever may connect to anything. */}}
{{- define "shunter-server.commonEnvironment" -}}
- name: SHUNTER_HOME
  value: /var/lib/shunter
{{- with .Values.proxy.http }}
- name: HTTP_PROXY
  value: {{ . | quote }}
{{- end }}
{{- with .Values.proxy.https }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
{{- end }}
{{- if or .Values.proxy.http .Values.proxy.https }}
- name: NO_PROXY
  value: {{ concat (list "localhost" "127.0.0.1" ".svc" (printf ".%s" .Values.clusterDomain) "$(KUBERNETES_SERVICE_HOST)") .Values.proxy.noProxy | uniq | join "," | quote }}
{{- end }}
{{- if or .Values.ca.secret .Values.ca.configMap }}
- name: SSL_CERT_FILE
  value: /etc/shunter/ca/{{ .Values.ca.key }}
{{- end }}
{{- end -}}

{{/* How the database is reached; nothing of SQLite, which lies in the home. A password is never in the URL: it may have any letters. */}}
{{- define "shunter-server.databaseEnvironment" -}}
{{- with .Values.database -}}
{{- if eq .type "postgres" -}}
- name: SHUNTER_SERVER_DATABASE_URL
{{- if .existingSecret }}
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .existingSecretKey }}
{{- else }}
  value: {{ printf "postgresql://%s@%s:%v/%s" (.user | urlquery | replace "+" "%20") .host .port (.name | urlquery | replace "+" "%20") | quote }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .passwordSecret }}
      key: {{ .passwordSecretKey }}
{{- end }}
{{- with .sslMode }}
- name: PGSSLMODE
  value: {{ . }}
{{- end }}
{{- if or $.Values.ca.secret $.Values.ca.configMap }}
- name: PGSSLROOTCERT
  value: /etc/shunter/ca/{{ $.Values.ca.key }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Of the container that serves. */}}
{{- define "shunter-server.environment" -}}
{{- include "shunter-server.commonEnvironment" . }}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: SHUNTER_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "shunter-server.keys" . }}
      key: token
- name: SHUNTER_SERVER_SECRET_KEYS
  valueFrom:
    secretKeyRef:
      name: {{ include "shunter-server.keys" . }}
      key: secret-key
- name: SHUNTER_SERVER_HOST
  value: {{ .Values.listen | quote }}
- name: SHUNTER_SERVER_PORT
  value: "4400"
- name: SHUNTER_SERVER_ALLOWED_HOSTS
  value: {{ include "shunter-server.hosts" . | quote }}
{{- with include "shunter-server.databaseEnvironment" . }}
{{ . }}
{{- end }}
{{- if eq .Values.tls.mode "secret" }}
- name: SHUNTER_SERVER_TLS_CERT
  value: /etc/shunter/tls/{{ .Values.tls.certKey }}
- name: SHUNTER_SERVER_TLS_KEY
  value: /etc/shunter/tls/{{ .Values.tls.keyKey }}
{{- else }}
- name: SHUNTER_SERVER_ALLOW_PLAINTEXT
  value: "true"
{{- end }}
{{- if .Values.trust }}
- name: SHUNTER_SERVER_TRUST
  value: {{ include "shunter-server.trust" . | quote }}
{{- end }}
{{- with .Values.oidc }}
{{- if .issuer }}
- name: SHUNTER_SERVER_OIDC_ISSUER
  value: {{ .issuer | quote }}
- name: SHUNTER_SERVER_OIDC_CLIENT_ID
  value: {{ .clientId | quote }}
{{- with .scopes }}
- name: SHUNTER_SERVER_OIDC_SCOPES
  value: {{ join " " . | quote }}
{{- end }}
{{- with .roles }}
- name: SHUNTER_SERVER_OIDC_ROLES
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- range $group, $settings := .Values.settings }}
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ include "shunter-server.setting" (dict "name" (printf "%s.%s" $group $name) "value" $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
