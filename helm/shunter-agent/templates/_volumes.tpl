{{/* Volumes of the pods, and where they are mounted. */}}

{{/* What shows the server who this is: for agent and test. */}}
{{- define "shunter-agent.credentialVolume" -}}
{{- if eq .Values.auth.mode "serviceAccount" }}
- name: shunter-token
  projected:
    sources:
      - serviceAccountToken:
          audience: {{ .Values.auth.serviceAccount.audience | quote }}
          expirationSeconds: {{ int .Values.auth.serviceAccount.expirationSeconds }}
          path: token
{{- else if eq .Values.auth.mode "existingSecret" }}
- name: shunter-token
  secret:
    secretName: {{ .Values.auth.existingSecret.name }}
    items:
      - key: {{ .Values.auth.existingSecret.key }}
        path: token
{{- end }}
{{- end -}}

{{- define "shunter-agent.credentialMount" -}}
{{- if ne .Values.auth.mode "enrolment" }}
- name: shunter-token
  mountPath: /var/run/secrets/shunter
  readOnly: true
{{- end }}
{{- end -}}

{{- define "shunter-agent.caVolume" -}}
{{- if .Values.ca.secret }}
- name: shunter-ca
  secret:
    secretName: {{ .Values.ca.secret }}
    items:
      - key: {{ .Values.ca.key }}
        path: {{ .Values.ca.key }}
{{- else if .Values.ca.configMap }}
- name: shunter-ca
  configMap:
    name: {{ .Values.ca.configMap }}
    items:
      - key: {{ .Values.ca.key }}
        path: {{ .Values.ca.key }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.caMount" -}}
{{- if or .Values.ca.secret .Values.ca.configMap }}
- name: shunter-ca
  mountPath: /var/run/secrets/shunter-ca
  readOnly: true
{{- end }}
{{- end -}}

{{/* The only places that can be written. */}}
{{- define "shunter-agent.writableVolumes" -}}
- name: home
  emptyDir:
    sizeLimit: {{ .Values.state.sizeLimit }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.state.tmpSizeLimit }}
{{- end -}}

{{- define "shunter-agent.writableMounts" -}}
- name: home
  mountPath: /var/lib/shunter
- name: tmp
  mountPath: /tmp
{{- end -}}

{{/*
What the launcher of a kubernetes pool shows the API server. It is what the kubelet would mount by itself, but in the
agent's container alone: containers beside it have no use for it.
*/}}
{{- define "shunter-agent.clusterVolume" -}}
{{- if eq .Values.poolType "kubernetes" }}
- name: kubernetes
  projected:
    sources:
      - serviceAccountToken:
          expirationSeconds: 3607
          path: token
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end }}
{{- end -}}

{{- define "shunter-agent.volumes" -}}
{{ include "shunter-agent.writableVolumes" . }}
{{- include "shunter-agent.credentialVolume" . }}
{{- include "shunter-agent.caVolume" . }}
{{- include "shunter-agent.clusterVolume" . }}
{{- if eq .Values.auth.mode "enrolment" }}
- name: enrolment
  secret:
    secretName: {{ .Values.auth.enrolment.name }}
    items:
      - key: {{ .Values.auth.enrolment.key }}
        path: token
{{- end }}
{{- if include "shunter-agent.configuration" . }}
- name: configuration
  configMap:
    name: {{ include "shunter-agent.fullname" . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.mounts" -}}
{{ include "shunter-agent.writableMounts" . }}
{{- include "shunter-agent.credentialMount" . }}
{{- include "shunter-agent.caMount" . }}
{{- if eq .Values.poolType "kubernetes" }}
- name: kubernetes
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}
{{- if include "shunter-agent.configuration" . }}
- name: configuration
  mountPath: /etc/shunter
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
