{{/* What the agent is told: its arguments, and its variables. */}}

{{/* So many runs at once: a follower of logs has room for a hundred; a process needs the pod's own memory. */}}
{{- define "shunter-agent.limit" -}}
{{- if not (kindIs "invalid" .Values.limit) -}}
{{- int .Values.limit -}}
{{- else if .Values.once -}}
1
{{- else -}}
{{- ternary 100 8 (eq .Values.poolType "kubernetes") -}}
{{- end -}}
{{- end -}}

{{/*
What runs may need altogether, as JSON. Of a kubernetes pool it is the cluster's matter, whose scheduler knows better: what
the agent's own pod may use says nothing of it.
*/}}
{{- define "shunter-agent.capacity" -}}
{{- $cluster := dict "cpu" 1000 "memory" "10TiB" -}}
{{- merge (dict) .Values.capacity (ternary $cluster (dict) (eq .Values.poolType "kubernetes")) | toJson -}}
{{- end -}}

{{- define "shunter-agent.arguments" -}}
- agent
- start
- --name
- $(POD_NAME)
{{- range .Values.pools }}
- --pool
- {{ . | quote }}
{{- end }}
{{- range .Values.queues }}
- --queue
- {{ . | quote }}
{{- end }}
{{- range .Values.tags }}
- --tag
- {{ . | quote }}
{{- end }}
- --limit
- {{ include "shunter-agent.limit" . | quote }}
{{- range $name, $amount := include "shunter-agent.capacity" . | fromJson }}
- --capacity
- {{ printf "%s=%s" $name (kindIs "string" $amount | ternary $amount (toJson $amount)) | quote }}
{{- end }}
{{- if .Values.createPools }}
- --create-pool
- {{ .Values.poolType }}
{{- range .Values.match }}
- --match
- {{ . | quote }}
{{- end }}
{{- if include "shunter-agent.template" . }}
- --template-file
- /etc/shunter/template.json
{{- end }}
{{- end }}
{{- if .Values.policy }}
- --policy
- /etc/shunter/agent.toml
{{- end }}
- --drain-grace
- {{ include "shunter-agent.drainGrace" . | quote }}
- --drain-end
- {{ ternary "leave" "stop" (eq .Values.poolType "kubernetes") }}
{{- if .Values.autoscaling.scaledJob.enabled }}
- --until-idle
{{- if .Values.once }}
- --once
{{- end }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Where the server is and how it is reached: the same for agent, join and test. */}}
{{- define "shunter-agent.connection" -}}
- name: SHUNTER_API_URL
  value: {{ .Values.api.url | quote }}
{{- if has .Values.auth.mode (list "serviceAccount" "existingSecret") }}
- name: SHUNTER_TOKEN_FILE
  value: /var/run/secrets/shunter/token
{{- end }}
{{- if or .Values.ca.secret .Values.ca.configMap }}
- name: SHUNTER_TLS_CA
  value: /var/run/secrets/shunter-ca/{{ .Values.ca.key }}
{{- end }}
{{- with .Values.proxy.http }}
- name: HTTP_PROXY
  value: {{ . | quote }}
- name: http_proxy
  value: {{ . | quote }}
{{- end }}
{{- with .Values.proxy.https }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
- name: https_proxy
  value: {{ . | quote }}
{{- end }}
{{- if or .Values.proxy.http .Values.proxy.https }}
- name: NO_PROXY
  value: {{ include "shunter-agent.noProxy" . | quote }}
- name: no_proxy
  value: {{ include "shunter-agent.noProxy" . | quote }}
{{- end }}
{{- end -}}

{{/* What is inside of the cluster: its API server, names of Services, and the server if its name is a short one. */}}
{{- define "shunter-agent.noProxy" -}}
{{- $inside := list "localhost" "127.0.0.1" "::1" "$(KUBERNETES_SERVICE_HOST)" ".svc" ".svc.cluster.local" ".cluster.local" -}}
{{- $host := (urlParse .Values.api.url).hostname -}}
{{- if not (contains "." $host) -}}
{{- $inside = append $inside $host -}}
{{- end -}}
{{- join "," (concat $inside .Values.proxy.noProxy | uniq) -}}
{{- end -}}

{{- define "shunter-agent.environment" -}}
{{ include "shunter-agent.ownEnvironment" . }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.ownEnvironment" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{ include "shunter-agent.connection" . }}
- name: SHUNTER_HOME
  value: /var/lib/shunter
- name: SHUNTER_AGENT_METRICS_HOST
  value: {{ .Values.metricsHost | quote }}
- name: SHUNTER_AGENT_METRICS_PORT
  value: "9400"
{{- if eq .Values.poolType "kubernetes" }}
# What an agent finds in its pod says nothing of the nodes on which Jobs are.
- name: SHUNTER_AGENT_FIND_TAGS
  value: "false"
{{- end }}
- name: SHUNTER_AGENT_SPOOL_LIMIT
  value: {{ .Values.state.spoolLimit | quote }}
- name: SHUNTER_AGENT_CACHE_LIMIT
  value: {{ .Values.state.cacheLimit | quote }}
{{- end -}}
