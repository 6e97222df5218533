{{/* What both of its containers have: they say what the server tells the admin. */}}
{{- define "shunter-server.testContainer" -}}
{{ include "shunter-server.containerCommon" . }}
env:
  - name: SHUNTER_HOME
    value: /tmp
  - name: SHUNTER_API_URL
    value: {{ include "shunter-server.url" . }}
  - name: SHUNTER_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ include "shunter-server.keys" . }}
        key: token
  {{- if or .Values.ca.secret .Values.ca.configMap }}
  - name: SHUNTER_TLS_CA
    value: /etc/shunter/ca/{{ .Values.ca.key }}
  {{- end }}
resources:
  {{- toYaml .Values.test.resources | nindent 2 }}
volumeMounts:
  {{- include "shunter-server.commonMounts" . | nindent 2 }}
{{- end -}}
